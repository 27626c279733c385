import collections
import json
import os
import pathlib

import pytest

from stepjax import prompts, records
from stepjax.initial_data import sources
from stepjax.prompts import Templates
from stepjax.records import Comparison, Problem, Question, Solution

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


def test_gsm8k_solutions(tmp_path):
    rows = sources.gsm8k_solutions(write(tmp_path / "train.jsonl", GSM8K), TEMPLATES)
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
    rows = sources.gsm8k_solutions(path, Templates(step="<{n}> "))
    assert [step[:4] for step in rows[1].steps] == ["<1> ", "<2> "]
    assert rows[1].id == "gsm8k-x-1"


def test_gsm8k_questions_and_problems(tmp_path):
    path = write(tmp_path / "test.jsonl", GSM8K)
    texts = [row["question"] for row in GSM8K]
    names = [f"gsm8k-test-{index}" for index in range(4)]
    assert sources.gsm8k_questions(path) == [
        Question(*row) for row in zip(names, texts, strict=True)
    ]
    answers = ["72", "10", "70000", "-3"]
    assert sources.gsm8k_problems(path) == [
        Problem(*row) for row in zip(names, texts, answers, strict=True)
    ]


def test_gsm8k_problems_in_the_evaluation_form(tmp_path):
    rows = [
        {"id": "gsm8k/test/4", "problem": "1+1?", "answer": "2", "solution": "2"},
        {"id": "gsm8k/test/9", "problem": "2+2?", "answer": "4"},
    ]
    path = write(tmp_path / "gsm8k.jsonl", rows)
    expected = [Problem("gsm8k/test/4", "1+1?", "2"), Problem(*rows[1].values())]
    assert sources.gsm8k_problems(path) == expected
    assert sources.benchmark(path) == expected


def test_benchmark_names_rows_without_an_id(tmp_path):
    rows = [{"problem": "1+1?", "answer": "2", "level": 1}, {"id": "b"}]
    rows[1] |= {"problem": "x?", "answer": r"\frac{1}{2}"}
    assert sources.benchmark(write(tmp_path / "math.jsonl", rows)) == [
        Problem("math-0", "1+1?", "2"),
        Problem("b", "x?", r"\frac{1}{2}"),
    ]


def solutions(path):
    return sources.gsm8k_solutions(path, TEMPLATES)


@pytest.mark.parametrize(
    "reader, bad, reason",
    [
        (solutions, {"question": "q"}, "field 'answer'"),
        (solutions, {"question": 5, "answer": "#### 1"}, "field 'question'"),
        (solutions, {"question": "q", "answer": "It is 1."}, "expected '#### N'"),
        (solutions, {"question": "q", "answer": "#### 1\nmore"}, "expected '#### N'"),
        (solutions, {"question": "q", "answer": ""}, "expected '#### N'"),
        (sources.gsm8k_questions, {"problem": "q"}, "field 'question'"),
        (sources.gsm8k_problems, {"problem": "q", "answer": "1"}, "field 'question'"),
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
        ({"id": "b-0", "problem": "q", "answer": "1"}, "'b-0' is there twice"),
    ],
)
def test_malformed_benchmark_rows(tmp_path, bad, reason):
    path = write(tmp_path / "b.jsonl", [{"problem": "p", "answer": "2"}, bad])
    with pytest.raises(ValueError) as caught:
        sources.benchmark(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


def group(*completions, human=None, chosen=None):
    return {
        "completions": [
            {"text": text, "rating": rating, "flagged": False}
            for text, rating in completions
        ],
        "human_completion": human
        and {"text": human, "rating": None, "source": "human", "flagged": False},
        "chosen_completion": chosen,
    }


def labelled(problem, *groups):
    return {
        "labeler": None,
        "question": {"problem": problem, "ground_truth_answer": "468"},
        "label": {"steps": list(groups), "total_time": 1, "finish_reason": "solution"},
    }


NO_COMPLETIONS = {
    "completions": None,
    "human_completion": {"text": "By hand.", "rating": None},
    "chosen_completion": None,
}
PRM800K = [
    labelled(
        "p0",
        group(("Good.", 1), ("Bad.", -1), ("Bad too.", -1), ("Better.", 1), chosen=3),
        group(("Neutral.", 0), ("Wrong.", -1), human="A person\n\n  writes."),
        group(("a\nb", 1), ("c", None), chosen=0),
        group(("Wrong.\n\n# Answer\n\n1", -1), ("So\n\n# Answer\n\n468", 1), chosen=1),
    ),
    labelled(
        "p1",
        group(("Same.", 1), ("Same. ", -1), ("Other.", -1), chosen=0),
        NO_COMPLETIONS,
        group(("Good.", 1), ("", -1), ("Bad.", -1)),  # nothing chosen: the end
        group(("Unreachable.", 1), ("Bad.", -1), chosen=0),
    ),
    labelled("p2", group(("Only good.", 1), chosen=0), group(("Only bad.", -1))),
    labelled("p3"),
]


def both(name, problem, steps, good, bad):
    return [
        Comparison(f"{name}-ab", problem, steps, good, bad, "A"),
        Comparison(f"{name}-ba", problem, steps, bad, good, "B"),
    ]


EXPECTED = [
    *both("prm800k-0-1", "p0", (), "Step 1: Good.", "Step 1: Bad."),
    *both(
        "prm800k-0-4",
        "p0",
        ("Step 1: Better.", "Step 2: A person writes.", "Step 3: a b"),
        "Step 4: So # Answer 468",
        "Step 4: Wrong. # Answer 1",
    ),
    *both("prm800k-1-1", "p1", (), "Step 1: Same.", "Step 1: Other."),
    *both(
        "prm800k-1-3",
        "p1",
        ("Step 1: Same.", "Step 2: By hand."),
        "Step 3: Good.",
        "Step 3: Bad.",
    ),
]


def test_prm800k_comparisons(tmp_path):
    path = write(tmp_path / "prm.jsonl", PRM800K)
    assert sources.prm800k_comparisons(path, TEMPLATES) == EXPECTED


def test_prm800k_steps_have_the_step_format(tmp_path):
    path = write(tmp_path / "prm.jsonl", PRM800K)
    for t in (TEMPLATES, Templates(step="({n}) ")):
        rows = sources.prm800k_comparisons(path, t)
        assert len(rows) == 8
        for row in rows:
            prompts.check_steps(t, (*row.steps, row.a))
            prompts.check_steps(t, (*row.steps, row.b))


@pytest.mark.parametrize(
    "bad, reason",
    [
        ({"label": {"steps": []}}, "field 'question'"),
        ({"question": {}, "label": {"steps": []}}, "field 'problem'"),
        ({"question": {"problem": "p"}}, "field 'label'"),
        ({"question": {"problem": "p"}, "label": {"steps": None}}, "field 'steps'"),
        (labelled("p", "no group"), "field 'completions'"),
        (labelled("p", {"chosen_completion": 0}), "field 'completions'"),
        (labelled("p", group((None, 1))), "field 'text'"),
        (labelled("p", group(("x", 2))), "rating is 2"),
        (labelled("p", group(("x", "1"))), "rating is '1'"),
        (labelled("p", group(("x", 1), chosen=1)), "chosen_completion is 1"),
        (labelled("p", group(("x", 1), chosen=-1)), "chosen_completion is -1"),
        (labelled("p", group(("x", 1), chosen="0")), "chosen_completion is '0'"),
        (labelled("p", group(human=["x"])), "field 'text'"),
    ],
)
def test_malformed_prm800k_rows(tmp_path, bad, reason):
    path = write(tmp_path / "prm.jsonl", [PRM800K[0], bad])
    with pytest.raises(ValueError) as caught:
        sources.prm800k_comparisons(path, TEMPLATES)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


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
    rows = sources.gsm8k_solutions(path, TEMPLATES)
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
    assert [(q.id, q.problem) for q in sources.gsm8k_questions(path)] == [
        (row.id, row.problem) for row in rows
    ]
    assert [p.answer for p in sources.gsm8k_problems(path)] == [r.answer for r in rows]


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
    rows = sources.prm800k_comparisons(path, TEMPLATES)
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
        problems = sources.benchmark(path)
        assert len(problems) == len(raw(path))
        assert all(item.problem for item in problems)
        counts[path.stem] = len(problems)
    assert counts and min(counts.values()) > 1
    path = real("eval", "gsm8k.jsonl")
    assert sources.gsm8k_problems(path) == sources.benchmark(path)
