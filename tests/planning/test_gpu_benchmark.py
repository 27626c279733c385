"""benchmarks/gpu.py: its settings are there, and its layouts hold the same pairs."""

import json
import pathlib
import runpy

import numpy as np
import pytest
from runs import command

ROOT = pathlib.Path(__file__).parents[2]
GPU = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))


@pytest.mark.parametrize("small", [True, False])
def test_the_short_run_on_word_problems_changes_settings_that_there_are(
    small, tmp_path, capsys
):
    file = f"--config={ROOT / 'configs' / 'smollm2_gpu.py'}:hf:{tmp_path},{tmp_path}"
    changes = GPU["_fewer"](small)
    assert command("run", file, *changes, f"--workdir={tmp_path / 'run'}") == 2
    said = capsys.readouterr().err.splitlines()
    wrong = [line for line in said if line.startswith("stepjax: ")]
    files = [line.partition("=")[0] for line in wrong if "no such file" in line]
    assert files == ["stepjax: data.equations", "stepjax: data.test"]
    assert len(wrong) == 2  # no setting is unknown or wrong


def test_layouts_hold_the_same_steps_and_a_forest_row_is_full():
    problems = GPU["trajectories"](length=128, count=4, vocab=64)
    names = "forest", "a context per pair", "one by one"
    batches = {name: GPU["batch_of"](name, problems, 128) for name in names}
    scored = {name: int((x.rows.weight > 0).sum()) for name, x in batches.items()}
    step = 128 // (2 * GPU["STEPS"] + 2)
    assert set(scored.values()) == {4 * GPU["STEPS"] * 2 * step}
    sizes = {name: x.rows.tokens.size for name, x in batches.items()}
    assert sizes["forest"] == 4 * 128 and sizes["one by one"] > 4 * sizes["forest"]
    assert np.all(batches["forest"].rows.subtree_end[0, :, 0] == 128)


def test_a_folder_that_is_not_there_is_named_before_anything_is_measured(tmp_path):
    file = tmp_path / "nowhere" / "gpu.json"
    with pytest.raises(FileNotFoundError, match="nowhere/gpu.json"):
        GPU["write"]({}, str(file))
    GPU["write"]({"small": True}, str(tmp_path / "gpu.json"))
    assert json.loads((tmp_path / "gpu.json").read_text()) == {"small": True}
