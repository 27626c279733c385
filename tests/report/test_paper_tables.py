"""Tables of the paper: own figures beside the published ones, or no table."""

import pytest

from stepjax import config
from stepjax.report import paper_tables, published


def measured(greedy=None, search=None, judge=None, steps=None, **searched):
    """The results of a model: accuracies, and (steps, tokens per step)."""
    found = {}
    if greedy is not None:
        found["greedy"] = {"metrics": {"accuracy": greedy}}
        if steps:
            names = ("steps_per_solution", "tokens_per_step")
            found["greedy"]["metrics"] |= dict(zip(names, steps, strict=True))
    if search is not None:
        found["search"] = {"metrics": {"accuracy": search} | searched}
    if judge is not None:
        found["judge"] = {"metrics": {"accuracy": judge}}
    return found


OWN = [
    measured(0.1),
    measured(0.5, 0.6, 0.9, (4.0, 20.0), flip_rate=0.25, judge_sampled=0.75),
    measured(0.6, judge=0.8, steps=(3.5, 22.5)),
    measured(0.75, 0.8, 0.85, (3.0, 25.0), flip_rate=0.125),
]
MATH = [{}, measured(0.25), {}, measured(0.5)]
SETTINGS = {
    "judge": {"kind": "comparisons", "score": "sum"},
    "data": {"make_eft": False},
    "sft": {"phases": [{"epochs": 2}, {"epochs": 3}]},
    "dpo": {"epochs": 1, "optimizer": {"learning_rate": 1e-4}},
    "search": {"width": 4, "top_p": 0.95},
}


def drawn(results=(), benchmarks=None, settings=None, counts=None):
    return dict(
        paper_tables.tables(results, benchmarks or {}, settings or {}, counts or {})
    )


def test_a_table_to_which_a_run_has_nothing_is_left_out():
    assert drawn([{}, {}]) == {}
    assert drawn([measured(0.5), measured(0.5)]) == {}  # M0 and M1: no change
    assert drawn([{}, measured(0.5), measured(0.5)]).keys() == {
        "Change of greedy accuracy from M1 to the last model, points"
    }


def test_the_change_from_m1_to_the_last_model():
    own, srlm, seven, seventy = paper_tables.gains({"own test": OWN, "MATH": MATH})
    assert own["M1 to the last"] == "this run, M1 to M3"
    assert own["own test"] == own["MATH"] == "+25.0"
    assert own["GSM8K"] == own["mean"] == "-"
    assert (srlm["AIME24"], srlm["mean"], srlm["own test"]) == ("+3.3", "+1.2", "-")
    assert (seven["MATH"], seven["AMC23"], seven["mean"]) == ("+3.8", "+10.0", "+4.4")
    assert (seventy["AMC23"], seventy["mean"]) == ("+12.5", "+4.7")


def test_test_time_search_of_m1_and_of_the_last_model():
    rows = paper_tables.searched({"own test": OWN, "MATH": MATH})
    assert [(row["model"], row["own test"], row["MATH"]) for row in rows] == [
        ("this run, M1, greedy", "50.0", "25.0"),
        ("this run, M1, test-time search", "60.0", "-"),
        ("this run, M3, greedy", "75.0", "50.0"),
        ("this run, M3, test-time search", "80.0", "-"),
        ("paper, 72B M1, greedy", "-", "75.6"),
        ("paper, 72B M1, test-time search", "-", "79.1"),
        ("paper, 72B M4, greedy", "-", "76.6"),
        ("paper, 72B M4, test-time search", "-", "79.3"),
    ]
    assert paper_tables.searched({"own test": MATH}) == []  # never searched


def test_steps_and_their_lengths():
    own, paper = paper_tables.lengths({"own test": OWN, "MATH": MATH})
    assert list(own.values()) == [
        "this run, own test, M1 and M3",
        *("4.00", "3.00", "20.0", "25.0"),
    ]
    assert list(paper.values())[1:] == ["9.35", "5.21", "61.6", "113.1"]


@pytest.mark.parametrize(
    "results, expected",
    [
        (OWN[:2], ["this run, M1, pairs of steps", "0.75", "0.75", "gold"]),
        (OWN, ["this run, M3, pairs of steps", "0.88", "0.85", "held out"]),
    ],
)
def test_consistency_and_agreement(results, expected):
    own, pairs, solutions = paper_tables.agreement(results, SETTINGS)
    assert list(own.values()) == expected
    assert list(pairs.values())[1:] == ["0.84", "0.88", "people"]
    assert list(solutions.values())[1:] == ["0.72", "0.32", "people"]


@pytest.mark.parametrize(
    "judge",
    [
        {"kind": "ratings", "score": "sum"},
        {"kind": "comparisons", "score": "single"},
        {"kind": "comparisons", "score": "pointwise"},
    ],
)
def test_a_judge_that_sees_one_order_has_no_consistency(judge):
    assert paper_tables.agreement(OWN, {"judge": judge}) == []
    assert paper_tables.agreement(OWN, {}) == []


def test_data_of_m1_and_of_each_iteration():
    made = {"own_search": {"counts": {"questions": 24, "pairs": 1031}}}
    rows = paper_tables.data([{}, made, {}], {"ift": 96, "eft": 192, "test": 9})
    assert [tuple(row.values()) for row in rows] == [
        ("IFT, rows", "96", "28,889"),
        ("EFT, rows", "192", "4,167 to 4,179 pairs"),
        ("questions of M1", "24", "400"),
        ("pairs of M1", "1,031", "-"),
    ]


def test_settings_beside_those_of_the_paper():
    rows = {row["setting"]: row for row in paper_tables.training(SETTINGS)}
    assert rows["sft.phases.epochs"]["this run"] == "2, 3"
    assert rows["search.width"] == {
        **{"setting": "search.width", "this run": "4", "paper": "6"}
    }
    learning_rate = rows["dpo.optimizer.learning_rate"]
    assert (learning_rate["this run"], learning_rate["paper"]) == ("0.0001", "5e-07")
    assert not any(name.startswith(("prm", "mcts")) for name in rows)


def test_our_defaults_are_the_papers_settings():
    settings = config.default().to_dict()
    settings["data"]["make_eft"] = True
    rows = paper_tables.training(settings)
    assert [row["setting"] for row in rows] == list(published.SETTINGS)
    other = {r["setting"]: r["this run"] for r in rows if r["this run"] != r["paper"]}
    assert other == {"dpo.beta": "0.1"}
