"""The final tables, from the manifests of made-up stages."""

from stepjax.evaluation import tables
from stepjax.lm import files
from stepjax.run.monitor import Monitor


def test_the_table_shows_what_the_stages_measured(tmp_path):
    rate = {"accuracy": 0.125, "low": 0.05, "high": 0.3}
    greedy = rate | {"steps_per_solution": 2.345, "tokens_per_step": 7.06}
    greedy["finished_rate"] = 0.5
    searched = rate | {"tie_rate": 0.5, "flip_rate": 0.25, "unparsed_rate": 0.0625}
    searched |= {"judge_sampled": 0.9375, "complete_rate": 0.25, "cut_off_rate": 0.125}
    searched |= {"unmarked_rate": 0.375, "misshapen_rate": 0.0}
    searched |= {"judge_brier": 0.0625, "cycle_rate": 0.125, "longer_wins": 0.75}
    training = {"pairs_right": 0.75, "pairs_reversed": 0.125, "judge_sampled": 0.875}
    training |= {"kl": 0.0432, "chosen_logp_before": -1.25, "chosen_logp_after": -1.0}
    training |= {"rejected_logp_before": -2.0, "rejected_logp_after": -4.0}

    def items(right):
        return {"items": [{"id": i, "right": i in right} for i in "abcdefghij"]}

    for name, value in {
        "eval/M0_test_greedy.json": {"metrics": greedy, "seconds": 1.26},
        "eval/M1_heldout_judge.json": {"metrics": rate, "seconds": 2},
        "eval/M1_test_search.json": {"metrics": searched, "seconds": 3},
        "eval/M1_test_greedy.json": {"metrics": greedy, "seconds": 4} | items("abc"),
        "eval/M2_test_greedy.json": {"metrics": greedy, "seconds": 5} | items("bcde"),
        "eval/M2_unseen_greedy.json": {"metrics": rate, "seconds": 6},
        "eval/M2_pairs_training.json": {"metrics": training, "seconds": 7},
        "M1/manifest.json": {"seconds": 40},
        "M2/manifest.json": {"counts": {"updates": 8}, "seconds": 41},
        "M1/search.json": {"counts": {"questions": 7, "pairs": 5}, "seconds": 5},
        "M9/manifest.json": {"seconds": 1},
    }.items():
        files.write_json(tmp_path / name, value)
    rows, judged, refused, iterations, seconds = tables.tables(tmp_path, 3)
    accuracy, lengths = "12.5 [5.0, 30.0]", ["2.35", "7.1"]
    assert [list(row.values()) for row in rows] == [
        ["M0", accuracy, *"------", *lengths],
        ["M1", accuracy, "12.5", "-", "12.5", "93.8", "50.0", "25.0", *lengths],
        ["M2", accuracy, "-", "12.5", *"----", *lengths],
    ]
    assert [list(row.values()) for row in refused] == [
        ["M0", "50.0", *"-----"],
        ["M1", "50.0", "25.0", "12.5", "37.5", "0.0", "6.2"],
        ["M2", "50.0", *"-----"],
    ]
    assert [list(row.values()) for row in judged] == [
        ["M0", *"---"],
        ["M1", "0.062", "12.5", "75.0"],
        ["M2", *"---"],
    ]
    # d and e gained, a lost, of ten: 2/10 - 1/10; the interval is of 3/12 and 2/12.
    assert [list(row.values()) for row in iterations] == [
        ["M1 → M2", "10.0 [-27.9, 44.5]", "7", "5", "75.0", "12.5", "87.5", "8"]
        + ["-1.25 → -1.00", "-2.00 → -4.00", "0.043"]
    ]
    assert [list(row.values()) for row in seconds] == [
        ["M0", "-", "-", "1.3", *"----"],
        ["M1", "40.0", "5.0", "4.0", "-", "2.0", "3.0", "-"],
        ["M2", "41.0", "-", "5.0", "6.0", "-", "-", "7.0"],
    ]
    assert len({tuple(row) for row in rows}) == 1


def test_columns_that_say_nothing_of_any_model_are_left_out(tmp_path):
    rate = {"accuracy": 0.5, "low": 0.25, "high": 0.75, "finished_rate": 1.0}
    greedy = rate | {"steps_per_solution": 3, "tokens_per_step": 7}
    written = {"metrics": greedy, "seconds": 2}
    files.write_json(tmp_path / "eval" / "M1_test_greedy.json", written)
    rows, judged, refused, iterations, seconds = tables.tables(tmp_path, 1)
    expected = {"model": "M1", "greedy % [95 %]": "50.0 [25.0, 75.0]"}
    assert rows == [expected | {"steps": "3.00", "tokens/step": "7.0"}]
    assert refused == [{"model": "M1", "finished %": "100.0"}]
    assert judged == [{"model": "M1"}]
    assert iterations == [] and seconds == [{"model": "M1", "eval greedy": "2.0"}]


def test_each_stage_has_what_it_compiled(tmp_path):
    for name, count in {
        "M1/manifest.json": {"programs": 12, "seconds": 3.14, "loaded": 2},
        "M1/search.json": {"programs": 0, "seconds": 0.0, "loaded": 5},
        "M2/manifest.json": None,  # of an earlier version
    }.items():
        manifest = {"seconds": 40} | ({"compiled": count} if count else {})
        files.write_json(tmp_path / name, manifest)
    assert tables.compiled(tmp_path, 2) == [
        {"model": "M1", "train": "12 in 3.1 s", "search questions": "0"},
        {"model": "M2", "train": "-", "search questions": "-"},
    ]
    (tmp_path / "M1/manifest.json").unlink()
    (tmp_path / "M1/search.json").unlink()
    assert tables.compiled(tmp_path, 2) == []


def test_every_column_of_figures_has_a_sentence_in_the_legend(tmp_path):
    shown = [tables._model_row("M1", {}), tables._refused_row("M1", {})]
    shown += [tables._iteration_row(1, {}, {}), tables._judge_row("M1", {})]
    shown.append(tables._judged_row({}))
    known = {"model", "iteration", "questions", "updates"}  # their names say it all
    assert {name for row in shown for name in row} == known | tables.LEGEND.keys()
    assert max(len(f"{k}: {said}") for k, said in tables.LEGEND.items()) <= 80


def test_the_legend_of_the_columns_stands_below_a_table(tmp_path, capsys):
    rows = [{"model": "M1", "tie %": "5.0", "steps": "3.00"}]
    text = Monitor(tmp_path).table("a title", rows, tables.LEGEND)
    *drawn, first, second = text.splitlines()
    assert drawn[-1].startswith("└") and len(drawn) == 6
    assert first == f"tie %: {tables.LEGEND['tie %']}"
    assert second == f"steps: {tables.LEGEND['steps']}"
    assert capsys.readouterr().out == f"{text}\n"
