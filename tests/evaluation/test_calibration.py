"""What verdicts say about a judge, by hand."""

import pytest
from fakes import by_rank, candidate, verdicts_of

from stepjax.evaluation import calibration
from stepjax.records import Question
from stepjax.trajectory import Expansion, State, Verdict


def searched(*expansions):
    made = []
    for texts, verdicts, action in expansions:
        candidates = tuple(map(candidate, texts))
        best = 0 if action in ("pair", "append") else None
        made.append(
            Expansion(1, 0, candidates, 0, tuple(verdicts), (), best, None, action, ())
        )
    return [State(Question("q", "p"), (), (), tuple(made), "budget")]


def test_circles_among_three_steps_are_counted():
    circle = verdicts_of("01A 10B 12A 21B 02B 20A")  # 0 > 1 > 2 > 0
    ordered = by_rank(3, 2, 1)
    undecided = verdicts_of("01A 10A 12A 21B 02A 20B")  # 0 against 1 flips
    states = searched(
        ("abc", circle, "back"), ("abc", ordered, "pair"), ("abc", undecided, "pair")
    )
    found = calibration.of_verdicts(states)
    assert found["cycle_rate"] == 0.5
    assert found["informative_rate"] == pytest.approx(2 / 3)
    assert "longer_wins" not in found  # all have one token


def test_a_judge_that_prefers_length_is_seen():
    texts = ("a", "bbb", "cc")
    states = searched((texts, verdicts_of("01B 10A 02B 12B"), "pair"))
    # 1 beats 0 and 2 beats 0, both longer; 2 beats 1, which is longer.
    assert calibration.of_verdicts(states)["longer_wins"] == pytest.approx(2 / 3)
    assert calibration.counts_of_verdicts(states)["longer_wins"] == (2, 3)
    assert calibration.of_verdicts([]) == {}
    assert calibration.of_verdicts(searched((("a",), (), "append"))) == {
        "informative_rate": 0.0
    }


def test_wins_of_the_first_one_shown_are_counted_where_one_of_two_wins():
    verdicts = [*verdicts_of("01A 10A 02A 20B 12-"), Verdict(2, 1, "C")]
    alone = [Verdict(0, 0, "A")]  # a candidate that was judged alone
    states = searched(("abc", verdicts, "pair"), ("a", alone, "append"))
    assert calibration.first_wins(states) == (3, 4)
    votes = verdicts_of("01A 01B 01B 10A")  # three explanations of one call
    assert calibration.first_wins(searched(("ab", votes, "back"))) == (1, 2)
    assert calibration.first_wins([]) == (0, 0)


def is_right(problem, steps, text):
    return None if problem == "unknown" else text in ("a", "c")


def test_the_brier_score_compares_probabilities_with_the_gold():
    verdicts = [
        Verdict(0, 1, "A", "", 0.9),  # a is right, b is not: 0.01
        Verdict(1, 0, "A", "", 0.8),  # 0.64
        Verdict(0, 2, "A", "", 0.7),  # both are right: passed over
        Verdict(1, 2, None),  # unread: 0.25
        Verdict(2, 1, "A"),  # certain, and right: 0
    ]
    states = searched((("a", "b", "c"), verdicts, "pair"))
    metrics, table = calibration.calibration(states, is_right)
    assert metrics["judge_brier"] == pytest.approx((0.01 + 0.64 + 0.25) / 4)
    assert table == [
        {"probability": 0.5, "right": 0.0, "count": 1},
        {"probability": 0.8, "right": 0.0, "count": 1},
        {"probability": 0.95, "right": 1.0, "count": 2},
    ]
    unknown = [State(Question("q", "unknown"), (), (), states[0].expansions, "budget")]
    assert calibration.calibration(unknown, is_right) == ({}, [])


def test_steps_that_are_judged_alone_all_count():
    verdicts = [Verdict(0, 0, "A", "", 0.5), Verdict(1, 1, "B", "", 0.5)]
    metrics, table = calibration.calibration(
        searched((("a", "b"), verdicts, "pair")), is_right
    )
    assert metrics == {"judge_brier": 0.25}
    assert table == [{"probability": 0.5, "right": 0.5, "count": 2}]


def test_ratings_have_no_brier_score():
    verdicts = [Verdict(0, 0, "4"), Verdict(1, 1, "2")]
    states = searched((("a", "b"), verdicts, "pair"))
    assert calibration.calibration(states, is_right) == ({}, [])


def test_a_judge_that_falls_by_more_than_two_points_is_warned_about():
    def measured(rate):
        return {"judge_sampled": rate, "judge_sampled_count": 200}

    assert calibration.warnings(measured(0.95), measured(0.935), 0.0) == []
    assert calibration.warnings({}, measured(0.5), 0.0) == []
    (text,) = calibration.warnings(measured(0.95), measured(0.925), 0.0)
    assert "right about 92.5 % of 200 pairs" in text and "2.5 points less" in text
    assert "Set judge.keep above 0" in text and "judge.model='M1'" in text
    (text,) = calibration.warnings(measured(0.95), measured(0.925), 0.5)
    assert "Raise judge.keep" in text and "is 0.5" in text
    (text,) = calibration.warnings(measured(0.95), measured(0.925), None)
    assert text.endswith("of 200).")
