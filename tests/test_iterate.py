"""The whole loop over a run directory: finished, continued after kills, refused.

One finished run (`helpers.finished_run`) is looked at by most tests; those that
change it take a copy.
"""

import collections
import hashlib
import shutil
import struct

import jax
import numpy as np
import pytest
from helpers import finished_run, get_config, quick_compiles
from tensorboardX.proto import event_pb2

from stepjax import config as configs
from stepjax import iterate, records, summary
from stepjax.lm import checkpoint
from stepjax.monitor import Monitor

COLUMNS = [
    *("model", "greedy % [95 %]", "search %", "judge %", "questions", "pairs"),
    *("tie %", "flip %", "unparsed %", "steps", "tokens/step"),
]
MADE = ("search.jsonl", "pairs.jsonl", "search.json")


@pytest.fixture(autouse=True, scope="module")
def compiles():
    with quick_compiles():
        yield


@pytest.fixture(scope="module")
def finished():
    return finished_run()


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run of its own, less the given files, with some settings changed."""

    def make(*without, **changes):
        folder = tmp_path / "run"
        shutil.copytree(finished, folder)
        for pattern in without:
            for path in list(folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        config = get_config()
        config.update_from_flattened_dict(changes)
        checkpoint.write_json(folder / "config.json", configs.to_dict(config))
        return folder, iterate.Run(config, folder)

    return make


def contents(folder):
    """Relative path → SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def arrays(folder, number):
    return checkpoint.read_json(folder / f"M{number}" / "manifest.json")["arrays"]


def assert_same_results(one, other):
    """Byte-identical pairs and searches, bitwise equal parameters, equal metrics."""
    for number in (1, 2):
        for name in MADE[:2]:
            path = f"M{number}/{name}"
            assert (one / path).read_bytes() == (other / path).read_bytes(), path
    for number in (1, 2, 3):
        assert arrays(one, number) == arrays(other, number), number
    for path in (one / "eval").iterdir():
        a, b = (checkpoint.read_json(f / "eval" / path.name) for f in (one, other))
        assert (a["metrics"], a["items"]) == (b["metrics"], b["items"]), path.name
    rows = [Monitor(f).rows() for f in (one, other)]
    assert [r for r in rows[0]] == [r for r in rows[1]]


# A finished run.


def test_layout_of_the_run_directory(finished):
    found = {str(p.relative_to(finished)) for p in finished.glob("*")}
    found |= {str(p.relative_to(finished)) for p in finished.glob("[!t]*/*")}
    names = ("ift", "eft", "heldout", "questions_1", "questions_2", "test")
    evaluations = [("test", "greedy"), ("heldout", "judge"), ("test", "search")]
    expected = {"config.json", "metrics.jsonl", "data", "eval", "tensorboard"}
    expected |= {"tokenizer", "data/manifest.json"}
    expected |= {f"data/{name}.jsonl" for name in names}
    for number in range(4):
        for split, mode in evaluations[: None if number else 2]:
            expected.add(f"eval/M{number}_{split}_{mode}.json")
    for number in (1, 2, 3):
        parts = ["params", "manifest.json", *(MADE if number < 3 else ())]
        expected |= {f"M{number}", *(f"M{number}/{part}" for part in parts)}
    assert found == expected  # no partial files, no training states
    assert len(list((finished / "tensorboard").iterdir())) == 1
    assert configs.to_dict(get_config()) == checkpoint.read_json(
        finished / "config.json"
    )


def test_metrics_stand_once_and_in_tensorboard(finished):
    rows = Monitor(finished).rows()
    places = [(row["stage"], row["model"], row["step"]) for row in rows]
    assert len(set(places)) == len(places)
    steps = collections.defaultdict(list)
    for stage, model, step in places:
        steps[stage, model].append(step)
    assert steps["sft/first", "M1"] == list(range(5, 41, 5))
    assert steps["sft/second", "M1"] == list(range(5, 61, 5))
    for number in (1, 2):
        pairs = len(records.read_jsonl(finished / f"M{number}/pairs.jsonl", Row))
        counts = checkpoint.read_json(finished / f"M{number + 1}/manifest.json")
        updates = 2 * -(-pairs // 8)  # two epochs of batches of 8
        assert counts["counts"] == {"pairs": pairs, "dropped": 0, "updates": updates}
        assert pairs > 16 and steps["dpo", f"M{number + 1}"][-1] == updates
        assert steps["search", f"M{number}"] == [number]
    assert steps["eval/M3_test_search", "M3"] == [3]
    dpo = [row for row in rows if row["stage"] == "dpo"]
    expected = {"loss", "grad_norm", "dpo_loss", "nll", "rewards/margins"}
    assert expected <= dpo[0].keys() and abs(dpo[0]["loss"] - np.log(2)) < 0.1

    (file,) = (finished / "tensorboard").iterdir()
    data, at, events = file.read_bytes(), 0, {}
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            events[value.tag, event.step] = value.simple_value
        at += 16 + size
    for row in rows:
        for name in row.keys() - {"stage", "model", "step"}:
            tag = f"{row['stage']}/{row['model']}/{name}"
            assert events[tag, row["step"]] == pytest.approx(row[name], rel=1e-6)


class Row:
    """Any JSON row, by its id."""


def test_the_final_table_has_a_row_a_model(finished):
    rows, seconds = summary.tables(finished, 3)
    assert [row["model"] for row in rows] == ["M0", "M1", "M2", "M3"]
    assert all(list(row) == COLUMNS for row in rows)
    assert [row["questions"] for row in rows] == ["-", "24", "24", "-"]
    lines = (finished / "M1/pairs.jsonl").read_text().count("\n")
    assert rows[1]["pairs"] == str(lines) and rows[3]["pairs"] == "-"
    assert rows[0]["search %"] == rows[0]["tie %"] == "-"
    metrics = checkpoint.read_json(finished / "eval/M2_test_greedy.json")["metrics"]
    assert rows[2]["greedy % [95 %]"].startswith(f"{100 * metrics['accuracy']:.1f} [")
    assert all(value != "-" for value in list(rows[2].values()))
    assert [row["train"] == "-" for row in seconds] == [True, False, False, False]


def test_manifests_name_the_digests_of_what_they_used_and_made(finished):
    digest = contents(finished)
    model = {f"M{n}": digest[f"M{n}/manifest.json"] for n in (1, 2, 3)}
    data = {path.stem: digest[f"data/{path.name}"] for path in finished.glob("data/*l")}
    for number in (1, 2, 3):
        manifest = checkpoint.read_json(finished / f"M{number}/manifest.json")
        if number == 1:
            assert manifest["inputs"] == {name: data[name] for name in ("ift", "eft")}
        else:
            before = f"M{number - 1}"
            pairs = digest[f"{before}/pairs.jsonl"]
            assert manifest["inputs"] == {before: model[before], "pairs": pairs}
        assert manifest["config"] == digest["config.json"] and manifest["seed"] == 0
        assert manifest["versions"]["jax"] == jax.__version__
        params = iterate.Run(get_config(), finished).params(number)
        assert manifest["arrays"] == checkpoint.array_digests(params)
        assert len(set(manifest["arrays"].values())) > 10 and manifest["seconds"] > 0
    made = checkpoint.read_json(finished / "M2/search.json")
    assert made["inputs"] == {"M2": model["M2"], "questions_2": data["questions_2"]}
    assert made["files"] == {name: digest[f"M2/{name}"] for name in MADE[:2]}
    judged = checkpoint.read_json(finished / "eval/M3_heldout_judge.json")
    assert judged["inputs"] == {"heldout": data["heldout"], "M3": model["M3"]}
    prepared = checkpoint.read_json(finished / "data/manifest.json")["files"]
    tokenizer = {f"../tokenizer/{p.name}" for p in finished.glob("tokenizer/*")}
    assert prepared.keys() == {f"{name}.jsonl" for name in data} | tokenizer
    assert prepared["../tokenizer/tokenizer.json"] == digest["tokenizer/tokenizer.json"]
