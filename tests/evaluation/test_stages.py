"""What the evaluation stages say of a finished run, recomputed from its files."""

import shutil

import numpy as np
import pytest
from runs import copy_run
from tiny_config import get_config

from stepjax import records, trajectory
from stepjax.codec import Codec
from stepjax.evaluation import answers, causes, diagnose, samples, stages
from stepjax.lm import files, tokenizer
from stepjax.pairs import Pair
from stepjax.run import rundir
from stepjax.settings import from_config
from stepjax.worlds import arithmetic

pytestmark = pytest.mark.usefixtures("quick_runs")


def training(folder, number):
    return files.read_json(folder / f"eval/M{number}_pairs_training.json")


@pytest.mark.parametrize("number", [2, 3])
def test_pairs_are_graded_against_the_gold(finished, number):
    pairs = records.read_jsonl(finished / f"M{number - 1}/pairs.jsonl", Pair)
    codec = Codec(tokenizer.load(finished / "tokenizer"), arithmetic.templates())
    kinds = {"pairs_right": 0, "pairs_reversed": 0}
    for pair in pairs:
        _, *steps = codec.text(pair.context_ids).strip("\n").split("\n")
        chosen, rejected = (
            arithmetic.is_right(pair.problem, steps, text)
            for text in (pair.chosen, pair.rejected)
        )
        kinds["pairs_right"] += chosen and not rejected
        kinds["pairs_reversed"] += rejected and not chosen
    found = training(finished, number)["metrics"]
    for name, count in kinds.items():
        assert found[name] == pytest.approx(count / len(pairs))
    parts = ("right", "reversed", "both_wrong", "both_right")
    assert sum(found[f"pairs_{part}"] for part in parts) == pytest.approx(1)


def test_log_probabilities_before_training_are_those_of_sampling(finished):
    pairs = records.read_jsonl(finished / "M1/pairs.jsonl", Pair)
    found = training(finished, 2)["metrics"]
    for side in ("chosen", "rejected"):
        sampled = np.mean([getattr(pair, f"{side}_logp") for pair in pairs])
        assert found[f"{side}_logp_before"] == pytest.approx(sampled, abs=1e-3)
        tokens = np.mean([len(getattr(pair, f"{side}_ids")) for pair in pairs])
        assert found[f"{side}_tokens"] == pytest.approx(tokens)
    assert found["kl"] > 0
    # Trained on them, the model tells the sides further apart.
    before, after = (
        found[f"chosen_logp_{when}"] - found[f"rejected_logp_{when}"]
        for when in ("before", "after")
    )
    assert after > before


def test_a_warning_is_said_and_kept(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    run = copy_run(folder, "eval/M2_pairs*")
    assert training(finished, 2)["warnings"] == []
    monkeypatch.setattr(diagnose, "COLLAPSE", -100.0)
    stages.evaluate(run, 2, ("training",))
    (warning,) = training(folder, 2)["warnings"]
    assert "nats per token" in warning
    said = " ".join(capsys.readouterr().err.split())
    assert "M2: chosen steps" in said and "dpo.beta" in said


def test_modes_that_do_not_apply_are_passed_over(tmp_path):
    folder = tmp_path / "run"
    run = copy_run(folder, "eval/*")
    shutil.rmtree(folder / "eval")
    # No unseen blocks in this world; M1 was not trained on pairs.
    assert stages.evaluate(run, 1, ("unseen", "training")) == {"test": {}}
    assert not (folder / "eval").exists()


def test_the_searches_of_an_evaluation_are_kept(finished):
    for number in (1, 2, 3):
        path = finished / f"eval/M{number}_test_search.json"
        result, kept = files.read_json(path), path.with_suffix(".jsonl")
        assert result["files"] == {kept.name: rundir.file_digest(kept)}
        states = [trajectory.from_row(row) for _, row in records.read_objects(kept)]
        assert [s.question.id for s in states] == [i["id"] for i in result["items"]]
        assert [s.status for s in states] == [i["status"] for i in result["items"]]
        assert result["prompts"]["solve"] == arithmetic.templates().solve


def test_two_samples_of_each_evaluation_are_in_the_log(finished):
    lines = (finished / "log.txt").read_text("utf-8").splitlines()
    for stage in ("test_greedy", "heldout_judge", "test_search"):
        for number in (1, 2, 3):
            head = f" M{number} eval/{stage}: sample "
            assert sum(head in line for line in lines) == 2
    (at, *_) = (n for n, line in enumerate(lines) if " M1 eval/test_greedy: " in line)
    items = files.read_json(finished / "eval/M1_test_greedy.json")["items"]
    item = samples.pick(items)[0]
    assert lines[at].endswith(f" sample {samples.text_of(item).splitlines()[0]}")
    assert lines[at + 1] == f"    {item['problem']}"


def test_what_a_search_warned_of_is_kept_and_said(finished):
    for number in (1, 2):
        manifest = files.read_json(finished / f"M{number}" / "search.json")
        rows = records.read_objects(finished / f"M{number}" / "search.jsonl")
        states = [trajectory.from_row(row) for _, row in rows]
        found = causes.of_search(states, from_config(get_config()))
        assert manifest["warnings"] == found
        lines = (finished / f"M{number}" / "pairs.jsonl").read_text("utf-8").count("\n")
        said = f" M{number} search: {lines} pairs from 24 questions; "
        assert said in (finished / "log.txt").read_text("utf-8")
        log = (finished / "log.txt").read_text("utf-8")
        assert all(f" M{number} search: {warning}\n" in log for warning in found)
        counts = manifest["counts"]
        parts = ("cut_off_rate", "unmarked_rate", "misshapen_rate")
        assert sum(counts[part] for part in parts) == pytest.approx(
            counts["malformed_rate"]
        )


@pytest.mark.parametrize("change", ["grader", "strict"])
def test_results_of_another_grader_are_measured_again(tmp_path, monkeypatch, change):
    strict = {"eval__grading": "strict"} if change == "strict" else {}
    run = copy_run(tmp_path / "run", **strict)
    paths = [
        tmp_path / f"run/eval/M2_test_{mode}.json" for mode in ("greedy", "search")
    ]
    before = list(map(files.read_json, paths))
    if change == "grader":
        monkeypatch.setattr(answers, "VERSION", answers.VERSION + 1)
    stages.evaluate(run, 2, ("greedy", "search", "judge"))
    for path, old in zip(paths, before, strict=True):
        new = files.read_json(path)
        assert new["items"] == old["items"] and new["metrics"] == old["metrics"]
        assert new["grader"] == answers.VERSION
        assert new["grading"] == ("strict" if change == "strict" else "lenient")
        assert new != old  # the time that it took, at least
    made = {path: path.stat().st_mtime_ns for path in paths}
    stages.evaluate(run, 2, ("greedy", "search"))
    assert {path: path.stat().st_mtime_ns for path in paths} == made
