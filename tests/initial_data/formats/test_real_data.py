"""Every file of a folder of real data, named by STEPJAX_DATA, is read in full."""

import collections
import json
import os
import pathlib

import pytest
from data_rows import TEMPLATES, benchmark, problems, questions, solutions

from stepjax import prompts, records
from stepjax.initial_data.formats import files, sources
from stepjax.records import Solution

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
