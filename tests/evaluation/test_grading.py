"""Measuring models: grading with fakes."""

from fakes import FakeSampler

from stepjax.evaluation import grading, intervals
from stepjax.records import Comparison, Problem, Question
from stepjax.trajectory import Candidate, State, Verdict, hash_id

# Accuracy.


def test_accuracy():
    items = [{"right": True}, {"right": False}, {"right": True}, {"right": True}]
    low, high = intervals.wilson(3, 4)
    expected = {"accuracy": 0.75, "low": low, "high": high, "count": 4}
    assert grading.accuracy(items) == expected
    assert grading.accuracy([]) == {"accuracy": 0, "low": 0, "high": 1, "count": 0}


# Greedy solutions.


def test_greedy_grades_batches_of_different_lengths(codec):
    texts = {
        "8*7+4*4+2": "Step 1: 8*7+4=0\nStep 2: 0*4+2=2; \\boxed{2}",
        "5*3+1": "Step 1: 5*3+1=6; \\boxed{6}",
        "1*9+2*3+1*7+4": "Step 1: 1*9+2=1\nStep 2: 1*3+1=4\n"
        "Step 3: 4*7+4=2; \\boxed{2}",
        "2*3+3": "no step and no answer",
        "6*4+1": "Step 1: 6*4+1=5; \\boxed{6}",
    }
    gold = ["2", "6", "2", "9", "5"]
    problems = [Problem(f"p{n}", p, gold[n]) for n, p in enumerate(texts)]
    answers, sizes = {}, []
    for problem, text in texts.items():
        ids = (*codec.tokenizer.encode_line(text), codec.tokenizer.eos_id)
        answers[codec.tokenizer.decode(codec.solve_prompt(problem))] = ids
        sizes.append(len(ids))
    slots = FakeSampler(codec, 3, lambda *row: answers[row[0] + row[1]])
    done, told, notes = [], [], []

    def on_done(batch):
        done.append(len(batch))
        told.extend(batch)
        notes.append(grading.right_so_far(told))

    limit = sorted(sizes)[-2]  # the longest answer is cut off
    assert limit < max(sizes) and sizes.index(max(sizes)) == 2
    items = grading.greedy(slots, codec, problems, max_tokens=limit, on_done=on_done)
    assert notes == ["66.7 % of 3 right", "40.0 % of 5 right"]
    assert [len(batch.rows) for batch in slots.batches] == done == [3, 2]
    for batch in slots.batches:
        assert batch.groups is None and batch.options["temperature"] == 0
    assert {row.prompt for row in slots.asked} == {"\n"}  # one token of each prompt
    assert [item["id"] for item in items] == ["p0", "p1", "p2", "p3", "p4"]
    assert [item["right"] for item in items] == [True, True, False, False, False]
    assert [item["prediction"] for item in items] == ["2", "6", None, None, "6"]
    assert [item["finished"] for item in items] == [True, True, False, True, True]
    assert [item["steps"] for item in items] == [2, 1, 3, 0, 1]
    tokens = [min(size, limit) for size in sizes]
    assert [item["tokens"] for item in items] == tokens
    assert [item["problem"] for item in items] == list(texts)
    assert items[0]["text"] == texts["8*7+4*4+2"] and items[0]["answer"] == "2"
    metrics = grading.greedy_metrics(items)
    low, high = intervals.wilson(2, 5)
    assert metrics == {
        "accuracy": 0.4,
        "low": low,
        "high": high,
        "count": 5,
        "wrong_count": 1,
        "unfinished_count": 1,
        "no_answer_count": 1,
        "ungraded_count": 0,
        "steps_per_solution": 7 / 5,
        "tokens_per_step": (sum(tokens) - tokens[3])
        / 7,  # what has no step is left out
        "finished_rate": 4 / 5,
    }


def greedy_item(codec, said, **problem):
    """The item of a solution that says this answer; None ends without one."""
    end = "5" if said is None else f"\\boxed{{{said}}}"
    ids = (*codec.tokenizer.encode_line(f"Step 1: {end}"), codec.tokenizer.eos_id)
    slots = FakeSampler(codec, 1, lambda *row: ids)
    rows = [Problem("p", "5*3+1", **problem)]
    (item,) = grading.greedy(slots, codec, rows, max_tokens=100)
    return item


def test_every_solution_has_one_outcome(codec):
    # A power that is too large counts apart from an answer that is wrong.
    answers = ("7", "8", None, "2^{2^{99}}")
    items = [greedy_item(codec, said, answer="7") for said in answers]
    items.append(items[1] | {"finished": False})
    items.append(items[0] | {"finished": False})  # right before it was cut off
    assert [item.get("limit") for item in items[:3]] == [None] * 3
    assert items[3]["limit"] == "a power that is too large"
    metrics = grading.greedy_metrics(items)
    found = {k: n for k, n in metrics.items() if k.endswith("_count")}
    assert set(found.values()) == {1} and len(found) == 4
    assert metrics["count"] == 6 == round(6 * metrics["accuracy"]) + sum(found.values())


def test_an_answer_is_graded_as_its_benchmark_states(codec):
    stated = {"answer": "4.2", "tolerance": "1e-1", "unit": "%"}
    near = greedy_item(codec, "4.3", **stated)
    assert near["right"] and near["tolerance"] == "1e-1" and near["unit"] == "%"
    assert not greedy_item(codec, "4.3", answer="4.2")["right"]
    assert not greedy_item(codec, "4.31", **stated)["right"]


# The judge.


def test_judge_accuracy_counts_unparsed_as_wrong(codec):
    rows = [
        Comparison("r0", "5*3+1", (), "Step 1: 5*3+1=6", "Step 1: 5*3+1=7", "A"),
        Comparison("r1", "5*3+1", (), "Step 1: 5*3+1=7", "Step 1: 5*3+1=6", "B"),
        Comparison(
            "r2",
            "8*7+4*4+2",
            ("Step 1: 8*7+4=0",),
            "Step 2: 0*4+2=2; \\boxed{2}",
            "Step 2: 0*4+2=5; \\boxed{5}",
            "A",
        ),
    ]
    said, asked, done = {"r0": "A", "r1": "A", "r2": None}, [], []

    def judge(requests, calls):
        asked.append((requests, calls))
        return [[Verdict(0, 1, said[r.problem_id], f"on {r.slot}")] for r in requests]

    items = grading.judge_accuracy(judge, codec, rows, slots=2, on_done=done.append)
    assert done == [items[:2], items[2:]]
    assert [len(requests) for requests, _ in asked] == [2, 1]
    assert all(calls == [[(0, 1)]] * len(requests) for requests, calls in asked)
    assert [item["right"] for item in items] == [True, False, False]
    assert [item["prediction"] for item in items] == ["A", "A", None]
    assert [item["answer"] for item in items] == ["A", "B", "A"]
    assert [item["problem"] for item in items] == [row.problem for row in rows]
    assert [item["steps"] for item in items] == [[], [], list(rows[2].steps)]
    assert [item["candidates"] for item in items] == [[r.a, r.b] for r in rows]
    assert [item["response"] for item in items] == ["on 0", "on 1", "on 0"]
    metrics = grading.judge_metrics(items)
    assert metrics == grading.accuracy(items) | {"unparsed_rate": 1 / 3}
    last = asked[1][0][0]
    assert last.steps == (codec.step("Step 1: 8*7+4=0"),)
    assert last.candidates == (codec.step(rows[2].a), codec.step(rows[2].b))
    assert last.path == (0, hash_id("r2"), 2, 0)
    texts = [codec.tokenizer.decode(ids) for ids in last.candidates]
    assert texts == [rows[2].a, rows[2].b]  # final steps have no newline


# Test-time search.


def closed(codec, question, texts, status):
    steps = tuple(
        Candidate(codec.step(text), text, 1, -1.0, status == "complete")
        for text in texts
    )
    return State(question, steps, (None,) * len(steps), (), status)


def test_searched_grades_closed_searches_in_any_order(codec):
    problems = [
        Problem("a", "8*7+4*4+2", "2"),
        Problem("b", "5*3+1", "6"),
        Problem("c", "6*4+1", "5"),
    ]
    first = ["Step 1: 8*7+4=0", "Step 2: 0*4+2=2; \\boxed{2}"]
    states = [
        closed(codec, Question("c", "6*4+1"), [], "budget"),
        closed(codec, Question("a", "8*7+4*4+2"), first, "complete"),
        closed(codec, Question("b", "5*3+1"), ["Step 1: 5*3+1=6"], "length"),
    ]
    graded = grading.searched(states, problems, codec)
    items = graded["items"]
    assert [item["id"] for item in items] == ["a", "b", "c"]
    assert [item["right"] for item in items] == [True, False, False]
    assert [item["status"] for item in items] == ["complete", "length", "budget"]
    assert [item["steps"] for item in items] == [2, 1, 0]
    sizes = [len(codec.step(text)) for text in first]
    assert items[0]["problem"] == "8*7+4*4+2"
    assert items[0]["tokens"] == sum(sizes) and items[0]["text"] == "\n".join(first)
    counts = {"wrong": 0, "unfinished": 2, "no_answer": 0, "ungraded": 0}
    counts = {f"{name}_count": count for name, count in counts.items()}
    assert graded["metrics"] == grading.accuracy(items) | counts
