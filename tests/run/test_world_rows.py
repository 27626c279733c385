"""What a run takes from the division world: its files, its gold, its tokenizer."""

import functools

import pytest
from tiny_config import changed

from stepjax import prompts, records, srlm
from stepjax.lm import tokenizer
from stepjax.run import data, kind, ranges, world_rows
from stepjax.settings import from_config
from stepjax.worlds import division, division_data, division_srlm

TEXTS = division.templates()


def typed(**changes):
    """Settings of the tiny run in the division world."""
    return from_config(changed(data__world="division", **changes))


def test_the_files_of_a_run_are_those_of_the_world(tmp_path):
    counts = data.make_data(typed(), TEXTS, tmp_path)
    sizes = {"ift": 96, "eft": 192, "heldout": 12, "test": 24, "unseen": 24}
    sizes |= {"questions_1": 24, "questions_2": 24, "level_0": 24, "level_1": 24}
    assert counts == sizes
    test = records.read_jsonl(tmp_path / "test.jsonl", records.Problem)
    assert {row.problem.count("/") for row in test} == {2}
    made = division_data.dataset(
        **{"seed": 0, "ift": 96, "eft": 96, "heldout": 6, "questions": (24, 24)},
        **{"test": 24, "operations": 2, "taught": 10, "unseen": 1},
    )
    assert test == made.test
    assert records.read_jsonl(tmp_path / "eft.jsonl", records.Comparison) == made.eft
    none = data.make_data(typed(data__unseen_divisors=0), TEXTS, tmp_path / "none")
    assert none == {name: n for name, n in sizes.items() if name != "unseen"}


def test_the_tokenizer_has_a_token_for_each_number(tmp_path):
    made = data.make_tokenizer(typed(), tmp_path)
    ids = [made.encode_line(str(number)) for number in range(1, 17)]
    assert all(len(one) == 1 for one in ids) and len({*map(tuple, ids)}) == 16
    for text, length in (
        ("12/5/7*3", 7),
        ("Step 1: 12/5=16", 6),
        ("Step 3: 12*3=2; \\boxed{2}", 9),
        ("Check: 12, 5*16=12 (+) 5*3=15 (-) [[A]]", 16),
    ):
        assert len(made.encode_line(text)) == length
        assert made.decode(made.encode_line(text)) == text
    assert tokenizer.load(tmp_path).vocab_size == made.vocab_size


def test_the_kinds_know_the_gold_and_keep_to_taught_divisions():
    found = kind.choose(typed())
    assert found.is_right is division.is_right and found.teach is None
    parts = division.split(0, taught=10, unseen=1)
    rated = kind.choose(typed(judge__kind="ratings"))
    assert rated.is_right is division_srlm.is_right
    for rows, make in (
        (found.world_rows, division_data.comparisons),
        (rated.world_rows, division_srlm.ratings),
    ):
        assert isinstance(rows, functools.partial) and rows.func is make
        assert rows.keywords == {"taught": parts.taught}
    context = rated.judgments.context
    assert rated.judgments.record is srlm.Rating and context is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.make_eft": True}, "data.make_eft=True; expected False with data.worl"),
        ({"data.operations": 1}, "data.operations=1; expected at least 2 with data.w"),
        ({"data.taught_divisors": 15}, "=(15, 1); expected at most 15 together"),
    ],
)
def test_settings_that_make_no_sense_in_this_world_are_refused(changes, said):
    c = changed(data__world="division")
    c.update_from_flattened_dict(changes)
    with pytest.raises(ValueError) as caught:
        ranges.check(c)
    assert said in str(caught.value)


def test_further_questions_are_new_and_of_the_highest_level():
    settings = typed()
    first = world_rows.further(settings, (), {"questions_3": 20, "questions_4": 5})
    assert [row.id for row in first[19:21]] == ["division-q3-19", "division-q4-0"]
    seen = {row.problem for row in first}
    more = world_rows.further(settings, seen, {"questions_5": 30})
    assert not seen & {row.problem for row in more}
    assert {row.problem.count("/") for row in (*first, *more)} == {2}


@pytest.mark.parametrize("world", ["", "arithmetic", "division", "word_problems"])
def test_every_world_has_templates(world):
    prompts.check_templates(world_rows.templates(world))
