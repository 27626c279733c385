"""The whole loop over a run directory: finished, continued after kills, refused.

One finished run (`runs.finished_run`) is looked at by most tests; those that
change it take a copy.
"""

import ast
import collections
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from runs import (
    assert_same_results,
    contents,
    copy_run,
    finished_run,
    make_mesh,
    poison_gold,
)
from tiny_config import get_config

import stepjax
from stepjax import config, iterate, records
from stepjax.evaluation import stages, tables
from stepjax.lm import checkpoint, files, sharding
from stepjax.pairs import Pair
from stepjax.run import manifest as manifests
from stepjax.run import rollout
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run

COLUMNS = [
    *("model", "greedy % [95 %]", "search %", "judge %", "sampled %"),
    *("tie %", "flip %", "steps", "tokens/step"),
]
DPO = ("dpo", "M2")
ROLLOUT = ("search_from_journal", "search_questions", "open_sampler")
MADE = ("search.jsonl", "pairs.jsonl", "search.json")


pytestmark = pytest.mark.usefixtures("quick_runs")


def model_arrays(folder, number):
    return files.read_json(folder / f"M{number}" / "manifest.json")["arrays"]


# A finished run.


def test_layout_of_the_run_directory(finished):
    found = {str(p.relative_to(finished)) for p in finished.glob("*")}
    found |= {str(p.relative_to(finished)) for p in finished.glob("[!t]*/*")}
    names = ("ift", "eft", "heldout", "questions_1", "questions_2", "test")
    evaluations = [("test", "greedy"), ("heldout", "judge"), ("test", "search")]
    expected = {"config.json", "metrics.jsonl", "log.txt", "data", "eval"}
    expected |= {"tensorboard", "tokenizer", "data/manifest.json"}
    expected |= {f"data/{name}.jsonl" for name in names}
    for number in range(4):
        for split, mode in evaluations[: None if number else 2]:
            expected.add(f"eval/M{number}_{split}_{mode}.json")
            if mode == "search":
                expected.add(f"eval/M{number}_{split}_{mode}.jsonl")
        if number > 1:
            expected.add(f"eval/M{number}_pairs_training.json")
    for number in (1, 2, 3):
        parts = ["params", "manifest.json", *(MADE if number < 3 else ())]
        expected |= {f"M{number}", *(f"M{number}/{part}" for part in parts)}
    assert found == expected  # no partial files, no training states
    assert len(list((finished / "tensorboard").iterdir())) == 1
    assert config.to_dict(get_config()) == files.read_json(finished / "config.json")


def test_every_metric_is_there_once(finished):
    rows = Monitor(finished).rows()
    places = [(row["stage"], row["model"], row["step"]) for row in rows]
    assert len(set(places)) == len(places)
    steps = collections.defaultdict(list)
    for stage, model, step in places:
        steps[stage, model].append(step)
    assert steps["sft/first", "M1"] == list(range(5, 41, 5))
    assert steps["sft/second", "M1"] == list(range(5, 61, 5))
    for number in (1, 2):
        pairs = len(records.read_jsonl(finished / f"M{number}/pairs.jsonl", Pair))
        counts = files.read_json(finished / f"M{number + 1}/manifest.json")
        updates = 2 * -(-pairs // 8)  # two epochs of batches of 8
        assert counts["counts"] == {"pairs": pairs, "dropped": 0, "updates": updates}
        assert pairs > 16 and steps["dpo", f"M{number + 1}"][-1] == updates
        assert steps["search", f"M{number}"] == [number]
    assert steps["eval/test_search", "M3"] == [3]
    dpo = [row for row in rows if row["stage"] == "dpo"]
    expected = {"loss", "grad_norm", "dpo_loss", "nll", "rewards/margins"}
    assert expected <= dpo[0].keys() and abs(dpo[0]["loss"] - np.log(2)) < 0.1
    # Both sides of a pair share its context; rows of SFT share nothing here.
    assert all(row["tree_token_ratio"] > 1.2 for row in dpo)
    sft = [row for row in rows if row["stage"] == "sft/first"]
    assert sft and not any("tree_token_ratio" in row for row in sft)


def test_the_final_table_has_a_row_per_model(finished):
    rows, judged, refused, iterations, seconds = tables.tables(finished, 3)
    assert [row["model"] for row in rows] == ["M0", "M1", "M2", "M3"]
    # This world has no unseen blocks, and M1 to M3 may never judge a right and a wrong
    # step.
    columns = [n for n in COLUMNS if n != "sampled %" or n in rows[0]]
    assert all(list(row) == columns for row in rows)
    assert [row["complete %"] == "-" for row in refused] == [True, False, False, False]
    assert [row["iteration"] for row in iterations] == ["M1 → M2", "M2 → M3"]
    assert [row["questions"] for row in iterations] == ["24", "24"]
    lines = (finished / "M1/pairs.jsonl").read_text().count("\n")
    assert iterations[0]["pairs"] == str(lines)
    for number, row in enumerate(iterations, 2):
        trained = files.read_json(finished / f"eval/M{number}_pairs_training.json")
        graded = trained["metrics"]["judge_sampled_count"]
        assert (row.get("judged right %", "-") == "-") == (graded == 0)
        missing = {name for name, value in row.items() if value == "-"}
        assert missing <= {"judged right %"}
    assert rows[0]["search %"] == rows[0]["tie %"] == "-"
    metrics = files.read_json(finished / "eval/M2_test_greedy.json")["metrics"]
    assert rows[2]["greedy % [95 %]"].startswith(f"{100 * metrics['accuracy']:.1f} [")
    searched = files.read_json(finished / "eval/M2_test_search.json")["metrics"]
    sampled = rows[2].get("sampled %", "-")
    assert (sampled == "-") == (searched["judge_sampled_count"] == 0)
    assert [row["train"] == "-" for row in seconds] == [True, False, False, False]


def test_manifests_name_the_digests_of_what_they_used_and_made(finished):
    digest = contents(finished)
    model = {
        f"M{n}": manifests.model_digest(finished / f"M{n}/manifest.json")
        for n in (1, 2, 3)
    }
    data = {path.stem: digest[f"data/{path.name}"] for path in finished.glob("data/*l")}
    for number in (1, 2, 3):
        manifest = files.read_json(finished / f"M{number}/manifest.json")
        if number == 1:
            assert manifest["inputs"] == {name: data[name] for name in ("ift", "eft")}
        else:
            before = f"M{number - 1}"
            pairs = digest[f"{before}/pairs.jsonl"]
            assert manifest["inputs"] == {before: model[before], "pairs": pairs}
        assert manifest["config"] == digest["config.json"] and manifest["seed"] == 0
        assert manifest["versions"]["jax"] == jax.__version__
        params = Run(get_config(), finished).params(number)
        assert manifest["arrays"] == checkpoint.array_digests(params)
        assert len(set(manifest["arrays"].values())) > 10 and manifest["seconds"] > 0
    made = files.read_json(finished / "M2/search.json")
    assert made["inputs"] == {"M2": model["M2"], "questions_2": data["questions_2"]}
    assert made["files"] == {name: digest[f"M2/{name}"] for name in MADE[:2]}
    judged = files.read_json(finished / "eval/M3_heldout_judge.json")
    assert judged["inputs"] == {"benchmark": data["heldout"], "M3": model["M3"]}
    prepared = files.read_json(finished / "data/manifest.json")["files"]
    tokenizer = {f"../tokenizer/{p.name}" for p in finished.glob("tokenizer/*")}
    assert prepared.keys() == {f"{name}.jsonl" for name in data} | tokenizer
    assert prepared["../tokenizer/tokenizer.json"] == digest["tokenizer/tokenizer.json"]


# The same command again, the same seed, another seed, other slots.


def test_the_same_command_again_only_reads_the_models(finished, monkeypatch):
    before, table, read = contents(finished), [], []
    monkeypatch.setattr(Monitor, "table", lambda *a: table.append(a[2]) or "")
    load = Run.load
    monkeypatch.setattr(Run, "load", lambda *a: read.append(a[1].name) or load(*a))
    for owner, names in ((Run, ("fit", "save")), (rollout, ROLLOUT)):
        for name in names:
            monkeypatch.setattr(owner, name, refuse)
    iterate.run(get_config(), finished)
    assert [row["model"] for row in table[0]] == ["M0", "M1", "M2", "M3"]
    assert read == ["M1", "M2", "M3"]
    assert contents(finished) == before


def refuse(*args, **kwargs):
    raise AssertionError("must not be called")


@pytest.mark.slow
def test_a_second_run_with_the_same_seed_is_the_same(finished, tmp_path):
    iterate.run(get_config(), tmp_path / "run")
    assert_same_results(finished, tmp_path / "run")


def search_again(folder, **changes):
    """What M1 makes of its questions with some settings changed."""
    copied = copy_run(folder, "M1/search*", "M1/pairs*", "M2", "M3", **changes)
    iterate.search(copied, 1)
    return [(folder / "M1" / name).read_text() for name in MADE[:2]]


def test_slots_do_not_change_a_search(finished, tmp_path):
    expected = [(finished / "M1" / name).read_text() for name in MADE[:2]]
    assert search_again(tmp_path / "a") == expected
    found = search_again(tmp_path / "b", search__slots=3)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def assert_close(*files):
    """Two files hold the same rows, log-probabilities to 1e-5."""
    rows = [[json.loads(line) for line in text.splitlines()] for text in files]
    numbers = ([], [])
    found, expected = map(split_floats, rows, numbers)
    assert found == expected and len(numbers[1]) > 50
    np.testing.assert_allclose(*numbers, atol=1e-5, rtol=0)


def split_floats(value, numbers):
    """The value without its floats, which are appended to `numbers`."""
    if isinstance(value, float):
        return numbers.append(value)
    if isinstance(value, dict):
        return {name: split_floats(item, numbers) for name, item in value.items()}
    if isinstance(value, list):
        return [split_floats(item, numbers) for item in value]
    return value


def test_another_seed_draws_other_steps(finished, tmp_path):
    # The same M1 and questions, so that only the draws differ.
    expected = [(finished / "M1" / name).read_text() for name in MADE[:2]]
    found = search_again(tmp_path / "a", seed=1)
    first, second = (text[1].splitlines() for text in (expected, found))
    assert found[0] != expected[0] and 16 < len(second)
    assert len(set(first) & set(second)) == 0


def test_questions_of_an_iteration_are_new(finished):
    split = {}
    for path in (finished / "data").glob("*.jsonl"):
        rows = [row for _, row in records.read_objects(path)]
        split[path.stem] = {row["problem"] for row in rows}
    assert len(split["questions_1"]) == len(split["questions_2"]) == 24
    for name in ("ift", "eft", "heldout", "test", "questions_1"):
        assert len(split[name]) > 5 and not split[name] & split["questions_2"]
    asked = (finished / "M2/search.jsonl").read_text()
    assert all(f'"problem": "{text}"' in asked for text in split["questions_2"])


# Damage.


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damaged_copy(folder, *names):
    """Copies the finished run and damages some files; returns what they were."""
    shutil.copytree(finished_run(), folder)
    before = contents(folder)
    for name in names:
        damage(folder / name)
        assert contents(folder)[name] != before[name]
    return before


def test_files_of_all_kinds_come_back_and_later_stages_stay(tmp_path, capsys):
    folder = tmp_path / "run"
    names = ["data/questions_2.jsonl", "tokenizer/tokenizer.json", "config.json"]
    names += ["M1/pairs.jsonl", "eval/M3_test_search.jsonl", "eval/M1_test_greedy.json"]
    before = damaged_copy(folder, *names)
    (folder / "data/ift.jsonl").unlink()
    iterate.run(get_config(), folder)
    said = capsys.readouterr().err
    assert ", so it is made again from the settings" in said
    # Which of the two depends on the character in the middle of the file.
    changed = "config.json: (this has changed since it was written|broken JSON)"
    assert re.search(changed, said)
    assert "M1/pairs.jsonl has changed since it was written, so the stage" in said
    found = contents(folder)
    logs = {name for name in before if name.startswith(("log", "metrics", "tensorb"))}
    made = {"M1/search.json", "eval/M3_test_search.json", "eval/M1_test_greedy.json"}
    for name in before.keys() - logs - made:  # those have seconds in them
        assert found[name] == before[name], name
    assert {name for name in found if "tensorboard" not in name} <= before.keys()
    assert_same_results(folder, finished_run())


def test_a_lost_model_is_made_again_and_later_stages_stay(tmp_path, capsys):
    folder = tmp_path / "run"
    (states,) = (finished_run() / "M2/params/state/d").iterdir()
    before = damaged_copy(folder, str(states.relative_to(finished_run())))
    shutil.rmtree(folder / "M1")
    iterate.run(get_config(), folder)
    said = capsys.readouterr().err
    assert "M1/manifest.json is gone, so the stage 'sft' is done again; what" in said
    assert "M2/params" in said and "; it is lost" in said
    found = contents(folder)
    for name in ("M3/manifest.json", "M2/search.json", "eval/M1_test_search.json"):
        assert found[name] == before[name], name
    assert not list(folder.glob("*/*damaged*"))
    assert_same_results(folder, finished_run())


def test_data_that_cannot_be_made_again_are_named(tmp_path):
    folder = tmp_path / "run"
    damaged_copy(folder, "data/ift.jsonl")
    kept = files.read_json(folder / "data/manifest.json")
    kept["files"]["ift.jsonl"] = "0" * 64  # as if a file of the settings had changed
    files.write_json(folder / "data/manifest.json", kept)
    with pytest.raises(ValueError) as error:
        Run(get_config(), folder)
    assert str(error.value) == (
        f"{folder}/data/ift.jsonl has changed since it was written, and today's "
        f"settings give another {folder}/data/ift.jsonl; expected the file as it was. "
        "Put it back, or use another --workdir for a new run."
    )


def test_dpo_alone_refuses_damaged_or_unfinished_pairs(tmp_path):
    run = copy_run(tmp_path / "a", "M2", "M3")
    damage(tmp_path / "a/M1/pairs.jsonl")
    with pytest.raises(ValueError, match="search.json is damaged; expected the fini"):
        iterate.dpo(run, 1)
    run = copy_run(tmp_path / "b", "M1/search.json", "M2", "M3")
    with pytest.raises(ValueError, match="search.json is missing; expected the fini"):
        iterate.dpo(run, 1)
    assert not (tmp_path / "a/M2").exists() and not (tmp_path / "b/M2").exists()


def test_one_stage_alone_names_the_command_that_mends_its_model(tmp_path):
    folder = tmp_path / "run"
    run = copy_run(folder, "M2/search*", "M3")
    (states,) = (folder / "M2/params/state/d").iterdir()
    damage(states)
    with pytest.raises(ValueError, match="M2/params.*`stepjax run` on the same") as e:
        iterate.search(run, 2)
    assert "makes it again" in str(e.value)
    shutil.rmtree(folder / "M2/params")
    with pytest.raises(ValueError, match="M2/params cannot be read.*`stepjax run` on"):
        iterate.search(run, 2)


# Gold stays with data preparation and evaluation.


def test_search_and_dpo_never_see_gold(finished, tmp_path, monkeypatch):
    for path in (finished / "data").glob("questions_*.jsonl"):
        rows = [row for _, row in records.read_objects(path)]
        assert len(rows) == 24 and all(row.keys() == {"id", "problem"} for row in rows)
    folder = tmp_path / "run"
    made = [f"M1/{name}" for name in (*MADE, "../M2", "../M3", "../eval")]
    run = copy_run(folder, *made)
    for name in ("ift", "eft", "heldout", "test"):
        (folder / "data" / f"{name}.jsonl").unlink()
    poison_gold(monkeypatch)
    # The run took its own references to some of them before.
    run.kind = run.kind._replace(is_right=refuse, world_rows=refuse)
    for number in (1, 2):
        iterate.search(run, number)
        iterate.dpo(run, number)
        for name in MADE[:2]:
            path = f"M{number}/{name}"
            assert (folder / path).read_bytes() == (finished / path).read_bytes()
        found, expected = (model_arrays(f, number + 1) for f in (folder, finished))
        assert found == expected
    with pytest.raises(ValueError, match="test.jsonl"):  # the poison works
        stages.evaluate(run, 2)


def imports(name):
    """Modules of stepjax that a module imports, anywhere in its text."""
    root = pathlib.Path(stepjax.__file__).parent
    path = root.joinpath(*name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            here = root.parent.joinpath(*node.module.split("."))
            found |= names if here.is_dir() else {node.module}
    return {name for name in found if name.startswith("stepjax.")}


@pytest.mark.parametrize(
    ("name", "deep"),
    [
        ("propose", "lm.sharding"),
        ("search", "lm.tokenizer"),
        ("judge", "lm.tokenizer"),
        ("self_judge", "lm.sharding"),
        ("trajectory", "lm.tokenizer"),
        ("pairs", "lm.tokenizer"),
        ("dpo", "lm.sharding"),
    ],
)
def test_nothing_that_knows_gold_is_imported(name, deep):
    known, todo = set(), [f"stepjax.{name}"]
    while todo:
        known.add(todo[-1])
        todo += imports(todo.pop()) - known
    gold = {"evaluation.answers", "evaluation.grading", "evaluation.stages"}
    gold |= {"evaluation.diagnose", "initial_data.formats.sources", "run.data"}
    gold |= {"worlds.arithmetic", "worlds.arithmetic_data", "worlds.arithmetic_srlm"}
    gold |= {"run.kind"}
    assert f"stepjax.{deep}" in known  # through a file between
    assert not known & {f"stepjax.{name}" for name in gold}
    reached = imports("stepjax.evaluation.stages") | imports(
        "stepjax.evaluation.grading"
    )
    assert {
        "stepjax.evaluation.grading",
        "stepjax.evaluation.answers",
    } <= reached  # the walk finds them


# Devices.


def test_eight_devices_make_the_same_as_one(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", make_mesh)
    folder = tmp_path / "run"
    run = copy_run(folder, "M1/search*", "M1/pairs*", "M2", "M3", "eval", "metrics*")
    assert dict(run.mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    iterate.search(run, 1)
    iterate.dpo(run, 1)
    for name in MADE[:2]:
        assert_close(*((f / "M1" / name).read_text() for f in (folder, finished)))
    rows = [
        [row for row in Monitor(f).rows() if (row["stage"], row["model"]) == DPO]
        for f in (folder, finished)
    ]
    assert len(rows[0]) == len(rows[1]) > 1
    for a, b in zip(*rows, strict=True):
        for name in ("loss", "dpo_loss", "nll", "rewards/margins"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
