"""Curves in Weights & Biases: what the package is told. A fake one takes its place."""

import math
import sys
import types

import pytest
import tiny_config

from stepjax.lm import files
from stepjax.run import wandb_curves
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run


class FakeRun:
    def __init__(self, **options):
        self.options, self.metrics, self.points, self.over = options, {}, [], False

    def define_metric(self, name, step_metric=None, hidden=False):
        self.metrics[name] = step_metric

    def log(self, points):
        assert not self.over
        self.points.append(points)

    def finish(self):
        self.over = True


@pytest.fixture
def made(monkeypatch):
    """The runs that a fake wandb was asked for."""
    runs = []

    def init(**options):
        runs.append(FakeRun(**options))
        return runs[-1]

    module = types.ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_the_numbers_of_tensorboard_go_there_too(made, tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    files.write_json(folder / "config.json", {"seed": 3, "dpo": {"beta": 0.5}})
    monitor = Monitor(folder, wandb="theirs")
    assert made == []  # a command that measures nothing begins nothing
    speeds = {"tokens_per_second": 512.0}
    monitor.log("dpo", "M2", 5, {"loss": 0.5, "note": "x"}, speeds=speeds)
    monitor.log("dpo", "M2", 10, {"loss": math.nan, "nll": 2.0})
    rate = {"accuracy": 0.75, "low": 0.5, "count": 9}
    monitor.log("eval/test_greedy", "M2", 2, rate)
    monitor.close()
    (run,) = made
    assert run.over
    assert run.points == [
        {"dpo/M2/loss": 0.5, "dpo/M2/tokens_per_second": 512.0, "dpo/M2/step": 5},
        {"dpo/M2/nll": 2.0, "dpo/M2/step": 10},
        {"eval/test_greedy/accuracy": 0.75, "eval/test_greedy/step": 2},
    ]
    for place in ("dpo/M2", "eval/test_greedy"):  # each counts for itself
        assert run.metrics[f"{place}/*"] == f"{place}/step"
    assert run.options["config"] == {"seed": 3, "dpo.beta": 0.5}
    assert (run.options["project"], run.options["name"]) == ("theirs", "first")
    assert run.options["resume"] == "allow" and run.options["dir"] == str(folder)

    again = Monitor(folder, wandb="theirs")  # the run goes on
    again.log("dpo", "M2", 15, {"loss": 0.25})
    other = Monitor(tmp_path, wandb="theirs")
    other.log("dpo", "M2", 5, {"loss": 0.25})
    ids = [run.options["id"] for run in made]
    assert ids[0] == ids[1] != ids[2] and all(ids)


def test_nothing_is_sent_without_the_setting_or_by_other_hosts(made, tmp_path):
    for monitor in (Monitor(tmp_path), Monitor(tmp_path, quiet=True, wandb="theirs")):
        monitor.log("dpo", "M2", 5, {"loss": 0.5})
        monitor.close()
    assert made == []


def test_what_is_wrong_there_is_said_once_and_stops_nothing(tmp_path, capsys):
    class Broken(FakeRun):
        def log(self, points):
            raise RuntimeError("no network")

    module = types.ModuleType("wandb")
    module.init = lambda **options: Broken(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", module)
        monitor = Monitor(tmp_path, wandb="theirs")
        for step in (5, 10):
            monitor.log("dpo", "M2", step, {"loss": 0.5})
        monitor.close()
    said = capsys.readouterr().err
    line = "wandb='theirs' cannot be written (no network); the run goes on"
    assert said.count("wandb=") == said.count(line) == 1
    assert [row["step"] for row in monitor.rows()] == [5, 10]
    assert list((tmp_path / "tensorboard").iterdir())


def test_an_absent_package_is_named_before_anything_is_done(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # it cannot be imported
    expected = (
        "wandb='theirs' needs the Python package 'wandb', which is not installed; "
        r"install the extra that brings it: pip install -e '.\[wandb\]'.*"
        "Or set wandb=''"
    )
    with pytest.raises(ValueError, match=expected):
        Run(tiny_config.changed(wandb="theirs"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    wandb_curves.check("")
