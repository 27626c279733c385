import collections
import json
import os
import pathlib

import pytest

from stepjax import prompts, records
from stepjax.initial_data import sources
from stepjax.prompts import Templates
from stepjax.records import Problem, Question, Solution

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
