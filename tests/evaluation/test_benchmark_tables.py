"""Tables of `eval.benchmarks`, of made-up results."""

import pytest

from stepjax.evaluation import benchmark_tables, intervals, tables
from stepjax.lm import files


def result(right, total=10, grader=1, **changes):
    items = [
        {"id": str(n), "right": n in right, "finished": True, "prediction": "7"}
        for n in range(total)
    ]
    for n, change in changes.items():
        items[int(n[1:])] |= change
    low, high = intervals.wilson(len(right), total)
    rate = {"accuracy": len(right) / total, "low": low, "high": high, "count": total}
    return {"items": items, "metrics": rate, "grader": grader}


def write(folder, names, results):
    files.write_json(folder / "eval" / "benchmarks.json", {"names": names})
    for name, value in results.items():
        files.write_json(folder / "eval" / f"{name}_greedy.json", value)


A, B = "gsm8k-0a1b2c3d", "MATH-ffffffff"


@pytest.fixture
def folder(tmp_path):
    unfinished, silent = {"finished": False}, {"prediction": None}
    results = {
        f"M0_{A}": result((), _0=unfinished, _1=silent, _2={"limit": "too large"}),
        f"M1_{A}": result((0, 1, 2)),
        f"M1_{B}": result((0,), total=4),
        f"M2_{A}": result((1, 2, 3, 4)),
        f"M2_{B}": result((0, 1), total=4, _0=unfinished),
        f"M3_{A}": result((0, 1, 2, 3, 4)),
        f"M3_{B}": result((0, 1, 2), total=4, grader=2),
        "M1_other-01234567": result((1,)),  # of `stepjax eval --benchmark`
    }
    write(tmp_path, [A, B], results)
    return tmp_path


def test_accuracy_of_every_model_with_the_mean(folder):
    (title, rows), *_ = benchmark_tables.tables(folder, 4)
    assert title == "benchmarks: greedy % [95 %]"
    mean = intervals.mean_of_benchmarks([(3, 0, 10), (1, 0, 4)])
    mean = "27.5 [{:.1f}, {:.1f}]".format(*(100 * end for end in mean[1:]))
    ends = [100 * end for end in intervals.wilson(3, 10)]
    assert rows[0] == {
        "model": "M0",
        "gsm8k": "0.0 [0.0, 27.8]",
        "MATH": "-",
        "mean [95 %]": "-",  # a mean of less would look like one of all
    }
    assert rows[1] == {
        "model": "M1",
        "gsm8k": f"30.0 [{ends[0]:.1f}, {ends[1]:.1f}]",
        "MATH": "25.0 [4.6, 69.9]",
        "mean [95 %]": mean,
    }
    assert [row["model"] for row in rows] == ["M0", "M1", "M2", "M3"]


def test_what_became_of_the_solutions(folder):
    _, (_, rows), _ = benchmark_tables.tables(folder, 4)
    names = "right", "wrong", "unfinished", "no answer", "ungraded"
    found = {
        (row["benchmark"], row["model"]): [row[name] for name in names] for row in rows
    }
    assert found["gsm8k", "M0"] == ["0", "7", "1", "1", "1"]
    assert found["MATH", "M2"] == ["2", "2", "0", "0", "0"]  # right before the end
    assert len(found) == 7


def test_changes_between_models(folder):
    *_, (_, rows) = benchmark_tables.tables(folder, 4)
    said = [tuple(row.values()) for row in rows]
    # Two gained, one lost: as likely as any other outcome of three.
    gain = intervals.paired_gain(
        *(result(right)["items"] for right in [(0, 1, 2), (1, 2, 3, 4)])
    )
    ends = "[{:.1f}, {:.1f}]".format(*(100 * end for end in gain[1:]))
    assert said[1] == ("M1 → M2", "gsm8k", f"10.0 {ends}", "1.000")
    assert said[2][:2] == ("M1 → M2", "MATH") and said[2][3] == "1.000"
    mean = intervals.mean_of_benchmarks([(2, 1, 10), (1, 0, 4)])
    ends = "[{:.1f}, {:.1f}]".format(*(100 * end for end in mean[1:]))
    assert said[3] == ("M1 → M2", "mean", f"17.5 {ends}", "-")
    # M3 was graded by another grader on MATH, so there is no comparison and no mean.
    pairs = [row[:2] for row in said]
    assert pairs == [
        ("M0 → M1", "gsm8k"),
        ("M1 → M2", "gsm8k"),
        ("M1 → M2", "MATH"),
        ("M1 → M2", "mean"),
        ("M2 → M3", "gsm8k"),
        ("M1 → M3", "gsm8k"),
    ]


def test_a_small_p_is_not_written_as_zero(tmp_path):
    every = range(40)
    write(tmp_path, [A], {f"M0_{A}": result((), 40), f"M1_{A}": result(every, 40)})
    drawn = benchmark_tables.tables(tmp_path, 1)
    assert drawn[-1][1][0]["p"] == "below 0.001"
    assert "mean [95 %]" not in drawn[0][1][0]  # of one benchmark


def test_a_run_without_benchmarks_has_no_such_table(tmp_path):
    assert benchmark_tables.tables(tmp_path, 3) == []


def test_what_figures_say_stands_below_the_table(folder):
    known = benchmark_tables.LEGEND.keys() | tables.LEGEND.keys()
    named = {"model", "models", "benchmark", "gsm8k", "MATH"}
    for _, rows in benchmark_tables.tables(folder, 4):
        assert rows[0].keys() <= known | named
    assert not benchmark_tables.LEGEND.keys() & tables.LEGEND.keys()
    texts = [f"{k}: {said}" for k, said in benchmark_tables.LEGEND.items()]
    assert max(map(len, texts)) <= 80
