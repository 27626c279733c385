import collections
import json
import os
import pathlib

import pytest

from stepjax import prompts, records
from stepjax.initial_data import files, sources
from stepjax.prompts import Templates
from stepjax.records import (
    Comparison,
    Preference,
    Problem,
    Question,
    Solution,
    StepLabels,
    Worked,
)

TEMPLATES = Templates()

# Two rows of GSM8K (openai/grade-school-math, MIT) and two of our own in its schema.
GSM8K = [
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then she "
        "sold half as many clips in May. How many clips did Natalia sell altogether "
        "in April and May?",
        "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold "
        "48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    },
    {
        "question": "Weng earns $12 an hour for babysitting. Yesterday, she just did "
        "50 minutes of babysitting. How much did she earn?",
        "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 "
        "minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    },
    {
        "question": "A line\u2028within?",
        "answer": " It is 35 * 2000 = <<35*2000=70000>>70,000. \n\n#### 70,000",
    },
    {"question": "Nothing to do?", "answer": "#### -3"},
]


def write(path, rows):
    records.write_jsonl(path, rows)
    return path


def solutions(path):
    return sources.read(path, "gsm8k", "solution", TEMPLATES)


def questions(path):
    return sources.read(path, "gsm8k", "question", TEMPLATES)


def problems(path):
    return sources.read(path, "gsm8k", "problem", TEMPLATES)


def benchmark(path):
    return sources.read(path, "benchmark", "problem", TEMPLATES)


def test_gsm8k_solutions(tmp_path):
    rows = solutions(write(tmp_path / "train.jsonl", GSM8K))
    assert rows[0] == Solution(
        "gsm8k-train-0",
        GSM8K[0]["question"],
        (
            "Step 1: Natalia sold 48/2 = 24 clips in May.",
            "Step 2: Natalia sold 48+24 = 72 clips altogether in April and May. "
            r"The answer is \boxed{72}.",
        ),
        "72",
    )
    assert rows[1].steps == (
        "Step 1: Weng earns 12/60 = $0.2 per minute.",
        "Step 2: Working 50 minutes, she earned 0.2 x 50 = $10. "
        r"The answer is \boxed{10}.",
    )
    assert rows[2] == Solution(
        "gsm8k-train-2",
        "A line\u2028within?",
        (r"Step 1: It is 35 * 2000 = 70,000. The answer is \boxed{70000}.",),
        "70000",
    )
    assert rows[3].steps == (r"Step 1: The answer is \boxed{-3}.",)
    assert len(rows) == 4


def test_gsm8k_solutions_use_the_templates_marker(tmp_path):
    path = write(tmp_path / "x.jsonl", GSM8K[:2])
    rows = sources.read(path, "gsm8k", "solution", Templates(step="<{n}> "))
    assert [step[:4] for step in rows[1].steps] == ["<1> ", "<2> "]
    assert rows[1].id == "gsm8k-x-1"


def test_gsm8k_questions_and_problems(tmp_path):
    path = write(tmp_path / "test.jsonl", GSM8K)
    texts = [row["question"] for row in GSM8K]
    names = [f"gsm8k-test-{index}" for index in range(4)]
    assert questions(path) == [Question(*row) for row in zip(names, texts, strict=True)]
    answers = ["72", "10", "70000", "-3"]
    assert problems(path) == [
        Problem(*row) for row in zip(names, texts, answers, strict=True)
    ]


def test_gsm8k_problems_in_the_evaluation_form(tmp_path):
    rows = [
        {"id": "gsm8k/test/4", "problem": "1+1?", "answer": "2", "solution": "2"},
        {"id": "gsm8k/test/9", "problem": "2+2?", "answer": "4"},
    ]
    path = write(tmp_path / "gsm8k.jsonl", rows)
    expected = [Problem("gsm8k/test/4", "1+1?", "2"), Problem(*rows[1].values())]
    assert problems(path) == expected
    assert benchmark(path) == expected


def test_benchmark_names_rows_without_an_id(tmp_path):
    rows = [{"problem": "1+1?", "answer": "2", "level": 1}, {"id": "b"}]
    rows[1] |= {"problem": "x?", "answer": r"\frac{1}{2}"}
    assert benchmark(write(tmp_path / "math.jsonl", rows)) == [
        Problem("math-0", "1+1?", "2"),
        Problem("b", "x?", r"\frac{1}{2}"),
    ]


@pytest.mark.parametrize(
    "reader, bad, reason",
    [
        (solutions, {"question": "q"}, "field 'answer'"),
        (solutions, {"question": 5, "answer": "#### 1"}, "field 'question'"),
        (solutions, {"question": "q", "answer": "It is 1."}, "expected '#### N'"),
        (solutions, {"question": "q", "answer": "#### 1\nmore"}, "expected '#### N'"),
        (solutions, {"question": "q", "answer": ""}, "expected '#### N'"),
        (questions, {"problem": "q"}, "field 'question'"),
        (problems, {"answer": "#### 1"}, "field 'question'"),
    ],
)
def test_malformed_gsm8k_rows(tmp_path, reader, bad, reason):
    path = write(tmp_path / "train.jsonl", [GSM8K[0], bad])
    with pytest.raises(ValueError) as caught:
        reader(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "bad, reason",
    [
        ({"problem": "q"}, "field 'answer'"),
        ({"answer": "1"}, "field 'problem'"),
        ({"problem": "q", "answer": 27.0}, "27.0"),
        ({"id": 3, "problem": "q", "answer": "1"}, "field 'id'"),
        ({"id": "b-0", "problem": "q", "answer": "1"}, "id 'b-0' is at "),
    ],
)
def test_malformed_benchmark_rows(tmp_path, bad, reason):
    path = write(tmp_path / "b.jsonl", [{"problem": "p", "answer": "2"}, bad])
    with pytest.raises(ValueError) as caught:
        benchmark(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


MATH = {
    "problem": "1+1?",
    "solution": r"\boxed{1} no, \boxed{2}",
    "level": "Level 1",
    "type": "Algebra",
}


def test_math_and_numina(tmp_path):
    proof = {
        "source": "olympiads",
        "problem": "Prove.",
        "solution": "Clear.",
        "messages": [],
    }
    rows = [
        MATH,
        MATH | {"answer": "two", "subject": "Algebra"},
        proof,
        MATH | {"id": "own"},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    made = sources.read(path, "math", "worked", TEMPLATES)
    assert made == [
        Worked("math-x-0", "1+1?", MATH["solution"], "2"),
        Worked("math-x-1", "1+1?", MATH["solution"], "two"),
        Worked("math-x-2", "Prove.", "Clear.", ""),
        Worked("own", "1+1?", MATH["solution"], "2"),
    ]
    (last,) = sources.read(write(path, [proof]), "numina", "worked", TEMPLATES)
    assert last == Worked("numina-x-0", "Prove.", "Clear.", "")
    write(path, [MATH, proof, proof])
    with pytest.raises(ValueError, match=r"x\.jsonl:2: no answer; expected the field"):
        sources.read(path, "math", "problem", TEMPLATES)
    rejects = files.Rejects()
    made = sources.read(path, "math", "problem", TEMPLATES, rejects)
    assert made == [Problem("math-x-0", "1+1?", "2")]
    assert rejects.reasons == {"no answer": 2}


def test_the_original_folder_of_math(tmp_path):
    for name in ("algebra/10", "algebra/2", "geometry/1"):
        path = tmp_path / "train" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(MATH | {"problem": name}, indent=1))
    made = sources.read(tmp_path / "train", "math", "worked", TEMPLATES)
    assert [(row.id, row.problem) for row in made] == [
        ("math-algebra/10", "algebra/10"),
        ("math-algebra/2", "algebra/2"),
        ("math-geometry/1", "geometry/1"),
    ]


def test_gsm8k_solutions_that_are_not_cut_yet(tmp_path):
    path = write(tmp_path / "train.jsonl", GSM8K)
    for whole, cut in zip(
        sources.read(path, "gsm8k", "worked", TEMPLATES), solutions(path), strict=True
    ):
        assert (whole.id, whole.problem, whole.answer) == (
            cut.id,
            cut.problem,
            cut.answer,
        )
        lines = enumerate(whole.solution.split("\n"), 1)
        assert tuple(f"Step {n}: {line}" for n, line in lines) == cut.steps


def test_files_of_one_name_in_a_folder(tmp_path):
    row = {"id": "a", "problem": "1+1?", "answer": "2"}
    write(tmp_path / "x.jsonl", [row])
    write(tmp_path / "y.jsonl", [row | {"id": "b"}, row])
    with pytest.raises(ValueError) as caught:
        benchmark(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'y.jsonl'}:2: id 'a' is at ")
    assert f"{tmp_path / 'x.jsonl'}:1 already" in str(caught.value)
    rejects = files.Rejects()
    made = sources.read(tmp_path, "benchmark", "problem", TEMPLATES, rejects)
    assert [item.id for item in made] == ["a", "b"] and rejects.read == 3


@pytest.mark.parametrize(
    ("form", "to", "words"),
    [
        ("csv", "worked", "format 'csv'; expected one of .*'gsm8k'.* for 'worked'"),
        ("gsm8k", "labels", "'gsm8k' gives .*'worked'.*; expected one of these"),
        ("gsm8k", "pairs", "records 'pairs'; expected one of"),
    ],
)
def test_formats_that_do_not_fit(form, to, words):
    with pytest.raises(ValueError, match=words):
        sources.read("nowhere", form, to, TEMPLATES)


def test_all_records_in_our_own_format(tmp_path):
    rows = {
        "question": Question("q", "p"),
        "problem": Problem("q", "p", "7"),
        "worked": Worked("q", "p", "s", "7"),
        "solution": Solution("q", "p", ("Step 1: a",), "7"),
        "labels": StepLabels("q", "p", ("Step 1: a", "Step 2: b"), (0.5, None)),
        "comparison": Comparison("q", "p", (), "Step 1: a", "Step 1: b", "B", "So. "),
        "preference": Preference("q", "p", ("Step 1: a",), "Step 2: b", "Step 2: c"),
    }
    assert rows.keys() == sources.TYPES.keys()
    for to, row in rows.items():
        path = write(tmp_path / f"{to}.jsonl", [row])
        assert sources.read(path, "jsonl", to, TEMPLATES) == [row]
        assert sources.readers(to)["jsonl"](path, TEMPLATES) == [row]


def test_the_formats_of_step_labels():
    assert list(sources.LABELS) == [
        *("jsonl", "prm800k", "processbench", "math_shepherd", "stepwise")
    ]


real_data = pytest.mark.skipif(
    "STEPJAX_DATA" not in os.environ,
    reason="STEPJAX_DATA is unset: no folder with gsm8k/, prm800k/ and eval/ to read",
)


def real(*parts):
    return pathlib.Path(os.environ["STEPJAX_DATA"], *parts)


def raw(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


@real_data
@pytest.mark.parametrize("name", ["train", "test"])
def test_real_gsm8k(tmp_path, name):
    path = real("gsm8k", f"{name}.jsonl")
    upstream = raw(path)
    rows = solutions(path)
    assert len(rows) == len(upstream) > 1000
    for row, source in zip(rows, upstream, strict=True):
        assert row.problem == source["question"]
        assert prompts.split_steps(TEMPLATES, "\n".join(row.steps)) == list(row.steps)
        assert [prompts.boxed(step) for step in row.steps[:-1]] == [None] * (
            len(row.steps) - 1
        )
        assert prompts.boxed(row.steps[-1]) == row.answer == str(int(row.answer))
        assert "<<" not in "".join(row.steps) and ">>" not in "".join(row.steps)
    copy = tmp_path / "copy.jsonl"
    records.write_jsonl(copy, rows)
    assert records.read_jsonl(copy, Solution) == rows
    assert [(q.id, q.problem) for q in questions(path)] == [
        (row.id, row.problem) for row in rows
    ]
    assert [p.answer for p in problems(path)] == [r.answer for r in rows]


def count_pairs(row):
    """Counts the step groups that hold a pair and that a known prefix leads to."""
    count = 0
    for step in row["label"]["steps"]:
        texts = collections.defaultdict(set)
        for completion in step["completions"] or []:
            texts[completion["rating"]].add(" ".join(completion["text"].split()))
        if texts[1] and texts[-1] and len(texts[1] | texts[-1]) > 1:
            count += 1
        if step["chosen_completion"] is None and not step["human_completion"]:
            break
    return count


@real_data
@pytest.mark.parametrize(
    "name", ["original_rows", "phase1_train_rebuilt", "phase1_test_rebuilt"]
)
def test_real_prm800k(name):
    path = real("prm800k", f"{name}.jsonl")
    rows = sources.read(path, "prm800k", "comparison", TEMPLATES)
    assert len(rows) == 2 * sum(count_pairs(row) for row in raw(path)) > 0
    assert len({row.id for row in rows}) == len(rows)
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first.a, first.b, first.verdict) == (second.b, second.a, "A")
        assert second.verdict == "B" and first.steps == second.steps
        assert first.a != first.b and "\n" not in first.a + first.b
        prompts.check_steps(TEMPLATES, (*first.steps, first.a))
        prompts.check_steps(TEMPLATES, (*first.steps, first.b))


@real_data
def test_real_benchmarks():
    counts = {}
    for path in sorted(real("eval").glob("*.jsonl")):
        items = benchmark(path)
        assert len(items) == len(raw(path))
        assert all(item.problem for item in items)
        counts[path.stem] = len(items)
    assert counts and min(counts.values()) > 1
    path = real("eval", "gsm8k.jsonl")
    assert problems(path) == benchmark(path)


# (path, format, kind of record) → rows read, rejected, records made.
COUNTS = {
    ("eval/aime24.jsonl", "benchmark", "problem"): (24, 0, 24),
    ("eval/amc23.jsonl", "benchmark", "problem"): (32, 0, 32),
    ("eval/gaokao2023en.jsonl", "benchmark", "problem"): (308, 0, 308),
    ("eval/gsm8k.jsonl", "benchmark", "problem"): (1028, 0, 1028),
    ("eval/math.jsonl", "benchmark", "problem"): (3995, 0, 3995),
    ("eval/math500.jsonl", "benchmark", "problem"): (389, 0, 389),
    ("eval/olympiadbench.jsonl", "benchmark", "problem"): (540, 0, 540),
    ("eval", "benchmark", "question"): (6316, 0, 6316),
    ("gsm8k/test.jsonl", "gsm8k", "worked"): (1028, 0, 1028),
    ("gsm8k/train.jsonl", "gsm8k", "worked"): (7473, 0, 7473),
    ("math/train_part.jsonl", "math", "worked"): (3605, 0, 3605),
    ("math/train_part.jsonl", "math", "problem"): (3605, 0, 3605),
    ("math_shepherd/sample.jsonl", "math_shepherd", "labels"): (7, 0, 7),
    ("numinamath/sample.jsonl", "numina", "worked"): (105, 0, 105),
    # 19 without a box, 4 with an empty one.
    ("numinamath/sample.jsonl", "numina", "problem"): (105, 23, 82),
    ("prm800k/original_rows.jsonl", "prm800k", "preference"): (6, 0, 30),
    ("prm800k/original_rows.jsonl", "prm800k", "labels"): (6, 0, 54),
    ("prm800k/phase1_test_rebuilt.jsonl", "prm800k", "preference"): (80, 0, 1190),
    ("prm800k/phase1_test_rebuilt.jsonl", "prm800k", "labels"): (80, 0, 2552),
    # 13,503 pairs; the texts of 6 are the same.
    ("prm800k/phase1_train_rebuilt.jsonl", "prm800k", "preference"): (745, 0, 13497),
    ("prm800k/phase1_train_rebuilt.jsonl", "prm800k", "labels"): (745, 0, 28823),
    ("processbench/gsm8k.jsonl", "processbench", "labels"): (302, 0, 302),
    ("processbench/math.jsonl", "processbench", "labels"): (818, 0, 818),
    ("processbench/olympiadbench.jsonl", "processbench", "labels"): (799, 0, 799),
    ("processbench/omnimath.jsonl", "processbench", "labels"): (814, 0, 814),
    ("word_problems/mawps_asdiv_train.jsonl", "word_problems", "solution"): (
        *(2818, 0, 2818),
    ),
    ("word_problems/svamp_test.jsonl", "word_problems", "problem"): (828, 0, 828),
}


@real_data
@pytest.mark.parametrize(("path", "form", "to"), COUNTS)
def test_real_counts(path, form, to):
    rejects = files.Rejects()
    made = sources.read(real(path), form, to, TEMPLATES, rejects)
    counts = rejects.read, len(rejects.rows), len(made)
    assert counts == COUNTS[path, form, to]
    assert rejects.kept == rejects.read - len(rejects.rows)
    lines = [
        raw(f) for f in (real(path).glob("*") if real(path).is_dir() else [real(path)])
    ]
    assert rejects.read == sum(map(len, lines))
    for row in made:
        steps = getattr(row, "steps", ())
        for last in (row.chosen, row.rejected) if to == "preference" else (None,):
            prompts.check_steps(TEMPLATES, (*steps, last) if last else steps)
    if form == "prm800k" and to == "labels":  # every rating is there once
        ratings = [
            completion["rating"]
            for row in lines[0]
            for group in row["label"]["steps"]
            for completion in group["completions"]
        ]
        found = [label for row in made for label in row.labels if label is not None]
        assert len(found) == len(ratings) - ratings.count(None)
        assert found.count(0) == ratings.count(-1)
    if form == "processbench":
        for row, source in zip(made, lines[0], strict=True):
            first = row.labels.index(0) if 0 in row.labels else -1
            assert first == source["label"] and len(row.steps) == len(source["steps"])


@real_data
def test_every_real_file_is_counted():
    found = {path.relative_to(real()).as_posix() for path in real().rglob("*.jsonl")}
    assert found == {path for path, _, _ in COUNTS} - {"eval"}
