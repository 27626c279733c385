"""What a run takes from the world of backward programs: its files and its gold."""

import functools

import pytest
from tiny_config import changed

from stepjax import prompts, records, srlm
from stepjax.run import data, kind, ranges, world_rows
from stepjax.settings import from_config
from stepjax.worlds import backwards, backwards_data, backwards_srlm

TEXTS = backwards.templates()


def typed(**changes):
    """Settings of the tiny run in the world of backward programs."""
    return from_config(changed(data__world="backwards", **changes))


def test_the_files_of_a_run_are_those_of_the_world(tmp_path):
    counts = data.make_data(typed(), TEXTS, tmp_path)
    sizes = {"ift": 96, "eft": 192, "heldout": 12, "test": 24, "unseen": 24}
    sizes |= {"questions_1": 24, "questions_2": 24}
    sizes |= {"level_0": 24, "level_1": 24, "level_2": 24}
    assert counts == sizes
    test = records.read_jsonl(tmp_path / "test.jsonl", records.Problem)
    made = backwards_data.dataset(
        **{"seed": 0, "ift": 96, "eft": 96, "heldout": 6, "questions": (24, 24)},
        **{"test": 24, "operations": 2, "taught": 6, "unseen": 1},
    )
    assert test == made.test
    assert records.read_jsonl(tmp_path / "eft.jsonl", records.Comparison) == made.eft
    none = data.make_data(typed(data__unseen_results=0), TEXTS, tmp_path / "none")
    assert none == {name: n for name, n in sizes.items() if name != "unseen"}


def test_the_kinds_know_the_gold_and_keep_to_taught_steps():
    found = kind.choose(typed())
    assert found.is_right is backwards.is_right and found.teach is None
    parts = backwards.split(0, taught=6, unseen=1)
    rated = kind.choose(typed(judge__kind="ratings"))
    assert rated.is_right is backwards_srlm.is_right
    for rows, make in (
        (found.world_rows, backwards_data.comparisons),
        (rated.world_rows, backwards_srlm.ratings),
    ):
        assert isinstance(rows, functools.partial) and rows.func is make
        assert rows.keywords == {"taught": parts.taught}
    context = rated.judgments.context
    assert rated.judgments.record is srlm.Rating and context is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.make_eft": True}, "data.make_eft=True; expected False with data.worl"),
        ({"data.taught_results": 10}, "=(10, 1); expected at most 10 together"),
    ],
)
def test_settings_that_make_no_sense_in_this_world_are_refused(changes, said):
    c = changed(data__world="backwards")
    c.update_from_flattened_dict(changes)
    with pytest.raises(ValueError) as caught:
        ranges.check(c)
    assert said in str(caught.value)


def test_further_questions_are_new():
    settings = typed()
    first = world_rows.further(settings, (), {"questions_3": 20, "questions_4": 5})
    assert [row.id for row in first[19:21]] == ["backwards-q3-19", "backwards-q4-0"]
    seen = {row.problem for row in first}
    more = world_rows.further(settings, seen, {"questions_5": 30})
    assert not seen & {row.problem for row in more}
    parts = backwards.split(0, taught=6, unseen=1)
    asked = {task for row in more for task in backwards.tasks(row.problem)}
    assert asked & parts.asked and not asked & parts.unseen


@pytest.mark.parametrize("world", ["", "arithmetic", "backwards", "word_problems"])
def test_every_world_has_templates(world):
    prompts.check_templates(world_rows.templates(world))
