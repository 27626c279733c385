"""A run whose EFT rows hold really sampled steps, scored by the gold, not by a PRM."""

import json
import pathlib

import pytest
import runs
import tiny_eft_config
import tiny_word_config

from stepjax import iterate, records
from stepjax.initial_data import eft_stage, stages
from stepjax.lm import files
from stepjax.records import Comparison, Question
from stepjax.run import manifest
from stepjax.run.run import Run
from stepjax.worlds import arithmetic

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def made(quick_runs):
    """Folder with the data and, as "run", the finished run; read only."""

    def make(folder: pathlib.Path):
        folder.mkdir()
        iterate.run(tiny_word_config.make(folder), folder / "run")
        for name in ("problems", "test"):
            (folder / f"{name}.jsonl").unlink()  # the run has copies

    return runs.made_once("word_run", make)


def opened(folder):
    """The finished run, whose data files are no longer there."""
    c = tiny_word_config.settings(folder)
    return Run(c, folder / "run", locks=False)


def metrics(made, name):
    return files.read_json(made / "run/eval" / f"{name}.json")["metrics"]


def test_layout(made):
    found = {p.name for p in (made / "run/init").iterdir()}
    assert found == {
        *("policy", "mcts.json", "eft.json", "trees.jsonl", "pairs.jsonl"),
        *("teacher.jsonl", "dropped.jsonl"),
    }
    found = {p.stem for p in (made / "run/data").glob("*.jsonl")}
    assert found == {
        *("ift", "eft", "heldout", "questions_1", "tree_questions", "test"),
        "equations",
    }
    rows = len((made / "run/data/equations.jsonl").read_text().splitlines())
    ift = opened(made).dir.read("ift", records.Solution)
    varied = sum("-numbers-" in row.id for row in ift)
    assert 30 < varied <= 60 and len(ift) == 60 + varied + 4
    assert rows == 60 + 6 + 16 + 40 + varied


def test_m1_goes_on_from_the_policy(made):
    policy = made / "run/init/policy/manifest.json"
    inputs = files.read_json(made / "run/M1/manifest.json")["inputs"]
    assert inputs["policy"] == manifest.model_digest(policy)


def test_pairs_are_sampled_steps_of_tree_questions_that_the_gold_tells_apart(made):
    run = opened(made)
    right = run.kind.is_right
    asked = {row.problem for row in run.dir.read("tree_questions", Question)}
    pairs = eft_stage.read_pairs(run)
    undecided = 0
    for (_, problem, steps, chosen, rejected), scores in (
        (vars(p.preference).values(), p.probabilities) for p in pairs
    ):
        assert problem in asked and chosen != rejected
        gold = tuple(float(right(problem, steps, x)) for x in (chosen, rejected))
        assert scores == gold and scores in ((1.0, 0.0), (0.0, 0.0))
        undecided += scores == (0.0, 0.0)
    decided = len(pairs) - undecided
    assert decided > 3 and undecided == min(undecided, round(3 / 7 * decided)) > 0
    names = [pair.preference.id for pair in pairs]
    assert len(set(names)) == len(names)


def test_no_step_follows_a_wrong_one(made):
    right = opened(made).kind.is_right
    for _, tree in records.read_objects(made / "run/init/trees.jsonl"):
        for node in tree["nodes"][1:]:
            if node["expanded"]:
                assert node["probability"] == 1.0
        for node in tree["nodes"]:
            if node["parent"] == 0:
                text = node["step"]["text"]
                assert right(tree["problem"], [], text) == (node["probability"] == 1)


def test_eft_rows_are_the_sampled_and_the_corrupted_ones(made):
    run = opened(made)
    counts = files.read_json(made / "run/init/eft.json")["counts"]
    rows = run.dir.read("eft", Comparison)
    corrupted = [row for row in rows if row.id.startswith("corrupted-")]
    assert counts["corrupted"] == len(corrupted) == 40
    assert counts["eft"] == len(rows) - 40 == 2 * len(eft_stage.read_pairs(run))
    assert counts["kept"] + counts["kept, undecided"] == counts["eft"] / 2
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        right = [run.kind.is_right(one.problem, one.steps, x) for x in (one.a, one.b)]
        assert one.verdict == ("A" if right[0] or not right[1] else "B")
        assert other.verdict == ("B" if right[0] and not right[1] else "A")
        assert one.explanation.startswith("The ")


def test_mistakes_are_measured_by_kind(made):
    judged = metrics(made, "M1_heldout_judge")
    kinds = {k[9:] for k in judged if k.startswith("accuracy_")}
    assert "operation" in kinds
    assert sum(judged[f"count_{kind}"] for kind in kinds) == judged["count"] == 12
    trained = metrics(made, "M2_pairs_training")
    names = [
        k
        for k in trained
        if k.startswith("judge_sampled_") and k != ("judge_sampled_count")
    ]
    graded = sum(trained[k] for k in names if k.endswith("_count"))
    assert graded == trained["judge_sampled_count"]
    assert 0 <= trained["expansions_informative"] <= trained["expansions_right"] <= 1
    samples = sum(v for k, v in trained.items() if k.startswith("sampled_"))
    assert samples >= 4 * 16 / 2
    searched = metrics(made, "M1_test_search")  # no equations of the test are known
    assert searched["judge_sampled_count"] == 0
    assert not {"judge_sampled", "expansions_right"} & set(searched)


def test_the_gold_scores_the_steps_of_the_arithmetic_world(tmp_path):
    c = tiny_eft_config.changed(
        prm__labels="gold",
        data__corrupted_count=8,
        mcts__undecided_share=0.5,
        mcts__pairs_per_node=2,
    )
    run = Run(c, tmp_path / "run")
    assert not (tmp_path / "run/data/labels.jsonl").exists()
    stages.make(run)
    assert not (tmp_path / "run/init/prm").exists()
    pairs = eft_stage.read_pairs(run)
    for pair in pairs:
        _, problem, steps, *sides = vars(pair.preference).values()
        right = [arithmetic.is_right(problem, steps, text) for text in sides]
        assert pair.probabilities == tuple(map(float, right))
    assert {pair.probabilities for pair in pairs} == {(1.0, 0.0), (0.0, 0.0)}
    counts = json.loads((tmp_path / "run/init/eft.json").read_text())["counts"]
    rows = run.dir.read("eft", Comparison)
    assert counts["corrupted"] == 16 and counts["eft"] + 16 == len(rows)
