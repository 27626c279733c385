"""PRM800K in its original schema: comparisons, preferences and step labels."""

import pytest

from stepjax import prompts, records
from stepjax.initial_data import sources
from stepjax.prompts import Templates
from stepjax.records import Comparison

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
