"""PRM800K in its original schema: comparisons, preferences and step labels."""

import json

import pytest

from stepjax import prompts, records
from stepjax.initial_data.formats import prm800k, sources
from stepjax.prompts import Templates
from stepjax.records import Comparison, Preference, StepLabels

TEMPLATES = Templates()


def write(path, rows):
    records.write_jsonl(path, rows)
    return path


def read(path, to="comparison", templates=TEMPLATES):
    return sources.read(path, "prm800k", to, templates)


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
    *both("prm800k-prm-0-1", "p0", (), "Step 1: Good.", "Step 1: Bad."),
    *both(
        "prm800k-prm-0-4",
        "p0",
        ("Step 1: Better.", "Step 2: A person writes.", "Step 3: a b"),
        "Step 4: So # Answer 468",
        "Step 4: Wrong. # Answer 1",
    ),
    *both("prm800k-prm-1-1", "p1", (), "Step 1: Same.", "Step 1: Other."),
    *both(
        "prm800k-prm-1-3",
        "p1",
        ("Step 1: Same.", "Step 2: By hand."),
        "Step 3: Good.",
        "Step 3: Bad.",
    ),
]


def test_prm800k_comparisons(tmp_path):
    path = write(tmp_path / "prm.jsonl", PRM800K)
    assert read(path) == EXPECTED


def test_prm800k_steps_have_the_step_format(tmp_path):
    path = write(tmp_path / "prm.jsonl", PRM800K)
    for t in (TEMPLATES, Templates(step="({n}) ")):
        rows = read(path, templates=t)
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
        read(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


def test_preferences_are_all_pairs_of_a_group(tmp_path):
    rows = read(write(tmp_path / "prm.jsonl", PRM800K), "preference")
    assert [row.id.removeprefix("prm800k-prm-") for row in rows] == [
        *("0-1-0-1", "0-1-0-2", "0-1-3-1", "0-1-3-2", "0-4-1-0"),
        *("1-1-0-2", "1-3-0-2"),
    ]
    assert rows[3] == Preference(
        "prm800k-prm-0-1-3-2", "p0", (), "Step 1: Better.", "Step 1: Bad too."
    )
    assert rows[4].steps == (
        "Step 1: Better.",
        "Step 2: A person writes.",
        "Step 3: a b",
    )
    assert rows[4].chosen == r"Step 4: So The answer is \boxed{468}."
    assert rows[4].rejected == r"Step 4: Wrong. The answer is \boxed{1}."


def test_labels_hold_every_rating_once(tmp_path):
    rows = read(write(tmp_path / "prm.jsonl", PRM800K), "labels")
    made = {row.id.removeprefix("prm800k-prm-"): row for row in rows}
    assert list(made) == [
        *("0", "0-1-0", "0-1-1", "0-1-2", "0-2-0", "0-2-1", "0-4-0"),
        *("1", "1-1-1", "1-1-2", "1-3-0", "1-3-2"),
        *("2", "2-2-0"),
    ]
    assert made["0"] == StepLabels(
        "prm800k-prm-0",
        "p0",
        (
            "Step 1: Better.",
            "Step 2: A person writes.",
            "Step 3: a b",
            r"Step 4: So The answer is \boxed{468}.",
        ),
        (1, None, 1, 1),
    )
    assert made["0-2-0"].steps == ("Step 1: Better.", "Step 2: Neutral.")
    assert made["0-2-0"].labels == (None, 1) and made["0-2-1"].labels == (None, 0)
    # The trunk of the second row ends where nothing was chosen.
    assert made["1"].steps == ("Step 1: Same.", "Step 2: By hand.")
    assert made["1"].labels == (1, None)
    assert made["1-3-2"].labels == (None, None, 0)
    ratings = [label for row in rows for label in row.labels if label is not None]
    assert (len(ratings), sum(ratings)) == (16, 8)


@pytest.mark.parametrize(("neutral", "label"), [("+", 1), ("-", 0), ("", None)])
def test_neutral_ratings(neutral, label):
    row = labelled("p", group(("a", 0), ("b", 0), ("c", 1), chosen=0))
    made = prm800k.labels(row, "x", TEMPLATES, neutral)
    labels = {row.id: row.labels for row in made}
    neutrals = {"x": (label,), "x-1-1": (label,)} if neutral else {}
    assert labels == neutrals | {"x-1-2": (1,)}


def test_phase_2_rows_of_a_found_error():
    row = labelled("p", group(("a", 1), chosen=0), group(("b", -1), ("c", 1)))
    row["question"] |= {"pre_generated_steps": ["a", "b"], "ground_truth_solution": "s"}
    row["label"]["finish_reason"] = "found_error"
    row["generation"] = 6
    made = prm800k.labels(row, "x", TEMPLATES)
    assert [(row.id, row.labels) for row in made] == [
        ("x", (1,)),
        ("x-2-0", (None, 0)),
        ("x-2-1", (None, 1)),
    ]
    (pair,) = prm800k.preferences(row, "x", TEMPLATES)
    assert (pair.chosen, pair.rejected) == ("Step 2: c", "Step 2: b")


def test_questions_and_problems(tmp_path):
    path = write(tmp_path / "prm.jsonl", PRM800K)
    assert [row.problem for row in read(path, "question")] == ["p0", "p1", "p2", "p3"]
    assert {row.answer for row in read(path, "problem")} == {"468"}
    row = labelled("p")
    row["question"]["ground_truth_answer"] = None
    with pytest.raises(ValueError, match="field 'ground_truth_answer' is empty"):
        prm800k.problem(row, "x", TEMPLATES)


def test_the_solutions_of_one_problem_are_one_question(tmp_path):
    row = {"question": {"problem": "p", "ground_truth_answer": "1"}}
    row |= {"label": {"steps": []}}
    other = json.loads(json.dumps(row))
    other["question"]["problem"] = "q"
    records.write_jsonl(tmp_path / "x.jsonl", [row, other, row, other, row])
    for to in ("question", "problem"):
        made = sources.read(tmp_path / "x.jsonl", "prm800k", to, TEMPLATES)
        assert [(item.id, item.problem) for item in made] == [
            ("prm800k-x-0", "p"),
            ("prm800k-x-1", "q"),
        ]
    steps = [{"problem": "p", "steps": ["a"], "label": -1, "id": f"{n}"} for n in "ab"]
    records.write_jsonl(tmp_path / "y.jsonl", steps)
    for to, count in (("question", 1), ("labels", 2)):
        made = sources.read(tmp_path / "y.jsonl", "processbench", to, TEMPLATES)
        assert len(made) == count
