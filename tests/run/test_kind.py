"""What `judge.kind` decides, chosen in one place."""

import random

import pytest
from tiny_config import changed

from stepjax import prompts, propose, records, srlm
from stepjax.run import kind
from stepjax.settings import from_config
from stepjax.worlds import arithmetic, arithmetic_srlm


def chosen(**changes):
    """The kind of the tiny run with some settings changed."""
    return kind.choose(from_config(changed(**changes)))


def test_comparisons_are_of_steps():
    found = chosen()
    assert found.name == "comparisons" and found.unit is propose.STEP
    assert found.candidate_tokens == 12 and found.judgment_tokens == 32
    assert found.judgments.record is records.Comparison
    assert found.is_right is arithmetic.is_right
    rated = {"trl", "step_dpo", "values"}  # pairs of steps, read as two rows each
    assert set(found.readers) == {"jsonl", "prm800k"} | rated
    assert len(found.judgments.calls(3, (0,))) == 6
    single = chosen(judge__score="single")
    assert len(single.judgments.calls(3, (0,))) == 3


def test_word_problems_know_their_gold_from_the_folder_of_the_run(tmp_path):
    c = from_config(changed(data__world="word_problems"))
    found = kind.choose(c)
    assert found.is_right is found.world_rows is found.teach is found.mistake is None
    rows = [{"id": "r", "problem": "How many?", "answer": "5", "equation": "+ 2 3"}]
    records.write_jsonl(tmp_path / "equations.jsonl", rows)
    found = kind.choose(c, tmp_path)
    right, wrong = (f"Step 1: 2 + 3 = {n}. \\boxed{{{n}}}" for n in (5, 6))
    assert found.is_right("How many?", [], right)
    assert not found.is_right("How many?", [], wrong)
    assert found.mistake("How many?", [], wrong) == "arithmetic"
    pair = records.Preference("p", "How many?", (), right, wrong)
    text = found.teach([pair], prompts.Templates())[0]["text"]
    assert text == (
        "The last calculation is 2 + 3 = 5. A: 2 + 3 = 5, ends, right. "
        "B: 2 + 3 = 6, ends, wrong. [[A]]"
    )
    assert len(found.world_rows("c", "How many?", random.Random(0), 0.0)) == 2


def test_ratings_of_word_problems_know_their_gold_from_the_same_place(tmp_path):
    changes = {"data__world": "word_problems", "judge__kind": "ratings"}
    c = from_config(changed(**changes))
    assert kind.choose(c).is_right is None
    rows = [{"id": "r", "problem": "How many?", "answer": "5", "equation": "+ 2 3"}]
    records.write_jsonl(tmp_path / "equations.jsonl", rows)
    found = kind.choose(c, tmp_path)
    assert found.is_right("How many?", [], r"Step 1: 2 + 3 = 5. \boxed{5}")
    assert not found.is_right("How many?", [], r"Step 1: 2 + 3 = 6. \boxed{6}")
    assert found.is_right("Who?", [], r"\boxed{5}") is None
    assert found.judgments.ends(None)[3] == "[[3]]"


def test_ratings_are_of_solutions():
    found = chosen(judge__kind="ratings", srlm__max_tokens=9)
    assert found.name == "ratings" and found.unit is srlm.SOLUTION
    assert found.candidate_tokens == 32 and found.judgment_tokens == 9
    assert found.judgments.record is srlm.Rating
    assert found.is_right is arithmetic_srlm.is_right
    assert set(found.readers) == {"jsonl"}
    assert found.judgments.calls(3, (0,)) == [(0, 0), (1, 1), (2, 2)]
    # The world's texts, unless the settings have their own.
    assert found.judgments.ends(None)[3] == "[[3]]"
    changes = {"judge__kind": "ratings", "srlm__rating": "Worth {score}"}
    assert chosen(**changes).judgments.ends(None)[3] == "Worth 3"
    assert chosen(**changes, data__world="").is_right is None


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(ValueError, match="judge.kind='votes'.*'ratings'"):
        chosen(judge__kind="votes")
    with pytest.raises(ValueError, match="template 'rating' is 'Worth'"):
        chosen(judge__kind="ratings", srlm__rating="Worth")
