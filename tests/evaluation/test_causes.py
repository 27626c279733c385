"""Warnings about searches and answers: what they count and tell people to change."""

import dataclasses

import pytest

from stepjax import config, settings
from stepjax.evaluation import causes
from stepjax.pairs import summary
from stepjax.records import Question
from stepjax.trajectory import Candidate, Expansion, Refused, State, Verdict

SETTINGS = settings.from_config(config.default())


def candidate(text):
    return Candidate((1,), text, 1, -1.0, False)


def expansion(texts=("a", "b"), refused=(), verdicts=(), action="append"):
    made = tuple(map(candidate, texts))
    malformed = sum(part.count for part in refused)
    scores, best = (0,) * len(made), 0 if made else None
    return Expansion(
        *(1, 0, made, malformed, tuple(verdicts), scores, best, None, action),
        (0, 0, 1, 0),
        tuple(refused),
    )


def state(*expansions, status="complete"):
    return State(Question("q", "5*3"), (), (), expansions, status)


def test_each_reason_names_its_share_its_setting_and_its_first_text():
    cut = [
        Refused("cut off", 3, "Step 1: Natalia sold\nclips"),
        Refused("other", 2, ""),
    ]
    bare = [Refused("no marker", 4, "The answer is 7")]
    more = [Refused("cut off", 2, "later"), Refused("other", 2, "Step 2: ")]
    found = causes.of_search(
        [state(expansion((), cut), expansion((), bare)), state(expansion((), more))],
        SETTINGS,
    )
    assert found == [
        "38 % of the sampled steps (5 of 13) were cut off at "
        "search.max_step_tokens=256. Raise search.max_step_tokens. The first one is "
        "'Step 1: Natalia sold\\nclips'.",
        "31 % of the sampled steps (4 of 13) do not begin with the marker of their "
        "step (for step 1: 'Step 1: '). Train M1 longer on IFT rows (sft.phases), or "
        "set prompts.step to the marker that the model writes. The first one is 'The "
        "answer is 7'.",
        "31 % of the sampled steps (4 of 13) hold nothing after their marker. Train M1 "
        "longer on IFT rows (sft.phases), or lower search.temperature=0.5. The first "
        "one is ''.",
    ]


def test_steps_that_hold_a_verdict_have_a_warning_of_their_own():
    held = [Refused("verdict", 3, "Step 1: 3 [[A]]")]
    assert causes.of_search([state(expansion("ab", held))], SETTINGS) == [
        "60 % of the sampled steps (3 of 5) hold a verdict, as only judgments may. "
        "Train M1 longer on IFT rows (sft.phases), or set prompts.verdict to a form "
        "that no step holds. The first one is 'Step 1: 3 [[A]]'."
    ]


def test_refused_texts_of_a_proposer_of_ones_own_are_no_matter_of_training():
    c = config.default()
    c.search.propose_by = "m:steps"
    faults = ("cut off", "verdict", "other")
    refused = [Refused(fault, 3, "x") for fault in faults]
    found = causes.of_search([state(expansion("a", refused))], settings.from_config(c))
    words = ("search.max_step_tokens=256", "prompts.verdict", "one step per item")
    assert all(word in text for word, text in zip(words, found, strict=True))
    assert all("m:steps" in text and "M1" not in text for text in found)


@pytest.mark.parametrize(
    ("by", "warned"), [("self", 1), ("oracle", 0), ("random", 0), ("m:score", 0)]
)
def test_no_preference_of_a_judge_that_writes_nothing_is_no_unread_verdict(by, warned):
    c = config.default()
    c.judge.by = by
    searched = state(expansion(verdicts=[Verdict(0, 1, None)] * 3))
    found = causes.of_search([searched], settings.from_config(c))
    assert len(found) == warned
    # Test-time search: there the model judges, whoever judged while pairs were made.
    asked = causes.of_search([searched], settings.from_config(c), by="self")
    assert len(asked) == 1


@pytest.mark.parametrize(("refused", "warned"), [(1, 0), (2, 1)])
def test_a_fifth_of_the_samples_is_not_often(refused, warned):
    texts = "abcdef"[: 5 - refused]  # 1 of 5 samples, or 2 of 5
    searched = state(expansion(texts, [Refused("cut off", refused, "x")]))
    assert len(causes.of_search([searched], SETTINGS)) == warned


def test_whole_solutions_name_the_settings_of_solutions():
    c = config.default()
    c.judge.kind, c.eval.max_tokens = "ratings", 99
    rated = [Verdict(0, 0, None, "I like it"), Verdict(1, 1, "3", "good")]
    searched = state(expansion("ab", [Refused("cut off", 2, "x")], rated))
    found = causes.of_search([searched], settings.from_config(c))
    assert found[0].startswith(
        "50 % of the sampled solutions (2 of 4) were cut off at eval.max_tokens=99."
    )
    assert found[1] == (
        "50 % of the judgments (1 of 2) hold no verdict. If they are cut off, raise "
        "srlm.max_tokens=512; otherwise train M1 longer on EFT rows (sft.phases). The "
        "first one is 'I like it'."
    )


def test_searches_that_do_not_end_are_counted_by_the_reason():
    closed = ["complete", "budget", "length", "budget", "complete"]
    states = [state(expansion(), status=status) for status in closed]
    (found,) = causes.of_search(states, SETTINGS)
    assert found.startswith(
        "60 % of the searches (3 of 5) did not reach the end of a solution: 2 used up "
        "search.max_expansions=20"
    )
    assert "; 1 found no room for another step in search.context_tokens=2048" in found
    assert causes.of_search(states[:1] * 4 + states[1:2], SETTINGS) == []
    assert causes.of_search([], SETTINGS) == []


def test_greedy_solutions_that_do_not_end():
    ended = {"finished": True, "text": "Step 1: \\boxed{1}"}
    endless = {"finished": False, "text": "so " * 200}
    (found,) = causes.of_greedy([ended, endless, endless], SETTINGS)
    assert found.startswith(
        "67 % of the greedy solutions (2 of 3) did not end within eval.max_tokens=2048."
    )
    assert " [...] " in found and len(found) < 500
    assert causes.of_greedy([ended] * 4 + [endless], SETTINGS) == []
    assert causes.of_greedy([], SETTINGS) == []


@pytest.mark.parametrize(
    ("states", "word"),
    [
        ([state(status="length")], "search.context_tokens"),
        ([state(expansion("a", [Refused("other", 3, "x")]))], "75% of its samples"),
        ([state(expansion("a"))], "search.width or search.redraw"),
        (
            [state(expansion(verdicts=[Verdict(0, 1, None, "hm")]))],
            "100% of its judgments hold no verdict",
        ),
        ([state(expansion(verdicts=[Verdict(0, 1, "A")]))], "pairs.min_margin"),
    ],
)
def test_a_search_without_pairs_says_why(states, word):
    assert word in causes.no_pairs(summary(states))


def test_an_oracle_without_preferences_is_not_called_unread():
    searched = summary([state(expansion(verdicts=[Verdict(0, 1, None)]))])
    assert "hold no verdict" in causes.no_pairs(searched)
    assert "the same score" in causes.no_pairs(searched, "oracle")


def test_preferences_that_make_no_pair_are_counted():
    steps = (candidate("a"), candidate("b"), candidate("c"))
    searched = dataclasses.replace(state(), steps=steps, pair_from=(0, None, 2))
    assert causes.left_out([searched, searched], 4, SETTINGS) == ""
    assert causes.left_out([searched, searched], 1, SETTINGS) == (
        " (3 of 4 preferences are left out by pairs.min_margin=1 and "
        "pairs.best_beats_all=False)"
    )


def test_counts_of_an_older_search_without_reasons_give_no_reasons():
    old = dataclasses.replace(expansion("a"), malformed=9)
    assert causes.of_search([state(old)], SETTINGS) == []


# A search that is not worth going on with.


def said(*expansions, **judge):
    c = config.default()
    c.judge.update(judge)
    chosen = settings.from_config(c)
    return causes.of_useless_search([state(e) for e in expansions], chosen)


def test_a_search_without_any_candidate_names_the_most_frequent_reason():
    cut = expansion((), [Refused("cut off", 6, "Step 1: Natalia")])
    bare = expansion((), [Refused("no marker", 6, "The answer is 7")])
    assert said(cut, bare, cut) == (
        "none of the 18 samples of its first 3 problems can be judged. 67 % of the "
        "sampled steps (12 of 18) were cut off at search.max_step_tokens=256. Raise "
        "search.max_step_tokens. The first one is 'Step 1: Natalia'."
    )
    assert said(cut, bare, expansion("a", [Refused("cut off", 5, "x")])) == ""
    assert said(expansion(())) == ""  # an own proposer gave nothing at all


def test_a_judge_that_never_decides_is_named_after_a_hundred_judgments():
    unread = expansion("ab", (), [Verdict(0, 1, None, "I like both")] * 50)
    found = said(unread, unread)
    assert found.startswith(
        "its judge has decided nothing in its first 2 problems. 100 % of the judgments "
        "(100 of 100) hold no verdict. If they are cut off, raise judge.max_tokens=512"
    )
    assert found.endswith("The first one is 'I like both'.")
    assert said(unread) == ""  # too few to tell
    assert said(unread, unread, expansion("ab", (), [Verdict(0, 1, "A")])) == ""
    assert said(unread, unread, by="random") == ""  # coins and functions may tie
    assert said(unread, unread, by="mine:judge") == ""
    served = said(unread, unread, by="http")
    assert "raise teacher.max_tokens=1024; otherwise take another model" in served
