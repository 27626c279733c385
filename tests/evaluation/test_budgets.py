"""Accuracy against tokens: tables and plot of made-up results."""

import pytest

from stepjax.evaluation import budgets, intervals
from stepjax.evaluation.solve import Choice, Solved


def solved(method, n, right, solver, judge, total=40):
    low, high = intervals.wilson(right, total)
    metrics = {"accuracy": right / total, "low": low, "high": high, "count": total}
    metrics |= {"solver_tokens": solver, "judge_tokens": judge, "read_tokens": 7.4}
    metrics["tokens"] = solver + judge
    return Solved(Choice(method, n), metrics, [])


FOUND = [
    solved("greedy", 1, 10, 20, 0),
    solved("majority", 2, 12, 40.4, 0),
    solved("majority", 8, 16, 161, 0),
    solved("best_of_n", 2, 14, 40.4, 9),
    solved("best_of_n", 8, 18, 161, 300),
]


def test_a_row_for_each_method_and_n():
    rows = budgets.table(FOUND)
    assert rows[3] == {
        "method": "best_of_n",
        "n": "2",
        "right % [95 %]": "35.0 [22.1, 50.5]",
        "solver": "40",
        "judge": "9",
        "budget": "49",
        "read": "7",
    }
    assert set(rows[0]) - {"method"} == set(budgets.LEGEND)


def test_without_answers_there_are_tokens_only():
    (row,) = budgets.table([Solved(Choice("greedy", 1), dict.fromkeys(TOKENS, 3), [])])
    assert row == dict(
        method="greedy", n="1", solver="3", judge="3", budget="3", read="3"
    )


TOKENS = ("solver_tokens", "judge_tokens", "read_tokens", "tokens")


def test_equal_budgets_have_the_largest_use_that_fits():
    rows = budgets.equal_budgets(FOUND)
    columns = ["22", "44", "88", "176", "352", "704"]
    assert list(rows[0]) == ["method", *(f"{x} tokens" for x in columns)]
    assert [list(row.values()) for row in rows] == [
        ["greedy", *["25.0 (1)"] * 6],
        ["majority", "-", "30.0 (2)", "30.0 (2)", *["40.0 (8)"] * 3],
        ["best_of_n", "-", "-", *["35.0 (2)"] * 3, "45.0 (8)"],
    ]


def test_far_budgets_grow_faster():
    (row,) = budgets.equal_budgets([solved("a", n, 10, 20 * n, 0) for n in (1, 1000)])
    sizes = [int(name.split()[0]) for name in list(row)[1:]]
    assert sizes == [22 * 4**power for power in range(len(sizes))]
    assert sizes[-2] < 20000 <= sizes[-1]


def test_markdown():
    assert budgets.markdown([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]) == (
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
    )


def test_the_plot_has_a_line_of_each_method_with_its_intervals(tmp_path, monkeypatch):
    drawn = {}

    class Recorder(budgets.Figure):
        def savefig(self, path, **options):
            drawn["axes"] = self.axes[0]
            super().savefig(path, **options)

    monkeypatch.setattr(budgets, "Figure", Recorder)
    budgets.plot(FOUND, tmp_path / "new" / "plot.png", "a title")
    assert (tmp_path / "new" / "plot.png").read_bytes()[:4] == b"\x89PNG"
    axes = drawn["axes"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "greedy",
        "majority",
        "best_of_n",
    ]
    line, _, (bars,) = axes.containers[1]
    assert line.get_xydata().tolist() == [[40.4, 30.0], [161, 40.0]]
    low, high = intervals.wilson(12, 40)
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx(
        [100 * low, 100 * high]
    )
