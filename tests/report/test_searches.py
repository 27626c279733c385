"""What the page holds of each search, read back as the browser reads it."""

import base64
import dataclasses
import gzip
import json
import math

import pytest
from hostile_run import BACK, IMAGE, PAIR, STATES, candidate, is_right, state

from stepjax.report import searches


def unpacked(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def rows():
    return [searches.of_state(s, is_right) for s in STATES]


def source(count=4):
    return searches.Source("M1", "questions", (rows() * count)[:count])


def test_candidates_have_multiplicity_score_and_gold_with_the_steps_before_them():
    hostile, dropped, _, plain = rows()
    first, second = hostile["expansions"]
    assert [c["right"] for c in first["candidates"]] == [True, False, False]
    assert [c["count"] for c in first["candidates"]] == [3, 1, 1]
    assert [c["tokens"] for c in first["candidates"]] == [2, 5, 2]
    assert first["scores"] == (4, 1, None) and first["best"] == 0
    assert first["verdicts"][5] == [2, 1, None, f"shown as 21 {IMAGE}"]
    assert (first["flips"], second["flips"]) == (0, 1)
    assert hostile["kept"] == [f"0 {IMAGE}", "1"]
    # The step before was dropped, so step 1 is graded without steps before it.
    assert dropped["expansions"][2]["candidates"][0]["right"] is True
    assert plain["expansions"][1]["candidates"][0]["right"] is False


def test_facts_of_filters():
    found = [searches.facts(row) for row in rows()]
    names = ("tie", "flip", "wrong", "lost", "back", "open", "failed", "steps")
    assert [[fact[name] for name in names] for fact in found] == [
        [1, 1, 0, 0, 0, 0, 0, 2],
        [1, 1, 0, 0, 1, 0, 0, 1],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 2],
    ]
    assert [fact["tokens"] for fact in found] == [4, 2, 0, 4]


def test_a_right_candidate_that_lost_to_a_wrong_one_and_a_wrong_answer_are_found():
    lost = dataclasses.replace(PAIR, best=1, worst=0)
    graded = {"right": False, "prediction": "4", "answer": "5", "text": "more"}
    row = searches.of_state(state("q", "count", lost), is_right, graded)
    fact = searches.facts(row)
    assert (fact["wrong"], fact["lost"], fact["failed"]) == (1, 1, 1)
    assert row["graded"] == {"right": False, "prediction": "4", "answer": "5"}
    unknown = searches.facts(searches.of_state(state("q", "count", lost)))
    assert (unknown["wrong"], unknown["lost"], unknown["failed"]) == (0, 0, 0)


def test_all_searches_are_read_back_from_their_chunks():
    two = [source(45), searches.Source("M2", "test", rows())]
    packed = searches.pack(two, 10**6)
    index = unpacked(packed.index)
    assert [(i["model"], i["problems"], i["first"]) for i in index] == [
        ("M1", "questions", 0),
        ("M2", "test", 45),
    ]
    assert index[1]["columns"]["id"] == ["hostile", "dropped", "refused", "plain"]
    chunks = [unpacked(chunk) for chunk in packed.chunks]
    assert [len(chunk) for chunk in chunks] == [40, 9]
    every = [row for chunk in chunks for row in chunk]
    assert every == json.loads(json.dumps([*two[0].rows, *two[1].rows]))
    assert packed.left_out == ""
    assert packed == searches.pack(two, 10**6)


def test_no_text_of_a_model_is_in_the_page_as_it_stands():
    packed = searches.pack([source()], 10**6)
    for text in (packed.index, *packed.chunks):
        assert "<" not in text and base64.b64decode(text, validate=True)


def size(packed):
    return sum(map(len, (packed.index, *packed.chunks)))


def test_explanations_of_other_pairs_go_first_and_the_page_says_so():
    whole = searches.pack([source()], 10**6)
    packed = searches.pack([source()], size(whole) - 1)
    words = "explanations of other comparisons than chosen against rejected"
    assert packed.left_out == words and size(packed) < size(whole)
    (chunk,) = map(unpacked, packed.chunks)
    kept = [call[3] is not None for call in chunk[0]["expansions"][0]["verdicts"]]
    assert kept == [False, False, True, True, False, False]
    assert [call[2] for call in chunk[0]["expansions"][0]["verdicts"]] == [
        *("A", "B", "A", "B", "A", None)
    ]
    # Without a pair no explanation is more important than another one.
    assert [call[3] for call in chunk[0]["expansions"][1]["verdicts"]] == [None, None]


def test_long_texts_are_cut_next_and_problems_last():
    numbers = "".join(str(n**7) for n in range(300))  # hard to compress
    long = dataclasses.replace(PAIR, candidates=(candidate(numbers),) * 3)
    row = searches.of_state(state("q", "p", long))
    given = [searches.Source("M1", "questions", [row])]
    packed = searches.pack(given, 1400)
    assert packed.left_out.endswith("and the ends of texts beyond 1000 characters")
    (chunk,) = map(unpacked, packed.chunks)
    texts = {c["text"] for c in chunk[0]["expansions"][0]["candidates"]}
    assert texts == {f"{numbers[:1000]} [...]"} and size(packed) <= 1400
    many = [
        searches.Source(
            "M1", "questions", [row | {"id": f"{n}" * 9} for n in range(400)]
        )
    ]
    few = searches.pack(many, 4000)
    kept = len(unpacked(few.index)[0]["columns"]["id"])
    assert size(few) <= 4000 and 1 <= kept < 400
    assert few.left_out.endswith(f"and {100 - kept / 4:.0f} % of the problems")


@pytest.mark.parametrize("logp", [math.nan, -math.inf])
def test_numbers_that_json_lacks_become_null(logp):
    broken = dataclasses.replace(candidate("0"), logp=logp)
    made = dataclasses.replace(BACK, candidates=(broken, broken), action="resample")
    row = searches.of_state(state("q", "p", made))
    assert (
        unpacked(searches.compressed(row))["expansions"][0]["candidates"][0]["logp"]
        is None
    )


def test_a_lone_surrogate_does_not_stop_the_report():
    assert unpacked(searches.compressed("a\ud800b")) == "a?b"
