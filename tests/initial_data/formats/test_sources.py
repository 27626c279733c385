import json

import pytest
from data_rows import TEMPLATES, benchmark, problems, questions, solutions

from stepjax import records
from stepjax.initial_data.formats import files, sources
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
        ({"problem": "q"}, "no answer (the fields ['problem'] are there)"),
        ({"answer": "1"}, "field 'problem'"),
        ({"problem": "q", "answer": [27]}, "[27]"),
        ({"id": [3], "problem": "q", "answer": "1"}, "field 'id'"),
        ({"id": "b-0", "problem": "q", "answer": "1"}, "id 'b-0' is at "),
    ],
)
def test_malformed_benchmark_rows(tmp_path, bad, reason):
    path = write(tmp_path / "b.jsonl", [{"problem": "p", "answer": "2"}, bad])
    with pytest.raises(ValueError) as caught:
        benchmark(path)
    shown = f" (id {bad['id']})" if isinstance(bad.get("id"), str) else ""
    assert str(caught.value).startswith(f"{path}:2{shown}: ")
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
    assert str(caught.value).startswith(
        f"{tmp_path / 'y.jsonl'}:2 (id a): id 'a' is at "
    )
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
        "solution": Solution("q", "p", ("Step 1: \\boxed{7}",), "7"),
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
    assert list(sources.readers("labels")) == [
        *("jsonl", "prm800k", "processbench", "math_shepherd", "stepwise", "values")
    ]


def test_answers_and_ids_that_are_numbers(tmp_path):
    answers = [7, 27.0, 2.5, -3, 10**30, "x", ""]
    rows = [{"id": n, "problem": "p", "answer": a} for n, a in enumerate(answers)]
    records.write_jsonl(tmp_path / "x.jsonl", rows)
    made = sources.read(tmp_path / "x.jsonl", "benchmark", "problem", TEMPLATES)
    texts = ["7", "27", "2.5", "-3", "1" + "0" * 30, "x", ""]
    assert made == [Problem(str(n), "p", text) for n, text in enumerate(texts)]
    for wrong, words in ((True, "is True"), (None, "is empty"), ([7], r"is \[7\]")):
        records.write_jsonl(tmp_path / "y.jsonl", [{"problem": "p", "answer": wrong}])
        with pytest.raises(ValueError, match=f"field 'answer' {words}"):
            sources.read(tmp_path / "y.jsonl", "benchmark", "problem", TEMPLATES)


def test_values_of_rollouts_are_labels_and_pairs(tmp_path):
    first, good, bad = "Step 1: a", "Step 2: b", "Step 2: c"
    row = {
        "id": "p",
        "problem": "?",
        "solutions": [[first, good], [first, bad]],
        "values": [[0.5, 0.75, 1.0], [0.5, 0.75, 0.5]],
    }
    path = write(tmp_path / "values.jsonl", [row])
    labels = sources.read(path, "values", "labels", TEMPLATES)
    assert [r.labels for r in labels] == [(1.0, 1.0), (1.0, 0.5 / 0.75)]
    (pair,) = sources.read(path, "values", "preference", TEMPLATES)
    assert (pair.steps, pair.chosen, pair.rejected) == ((first,), good, bad)
    row["values"][1][2] = 0.75  # they differ by less than a half
    path = write(tmp_path / "near.jsonl", [row])
    assert sources.read(path, "values", "preference", TEMPLATES) == []
