"""One of two hosts is killed, does not come, or gets a signal, in every phase."""

import json
import os
import pathlib
import re
import signal
import socket

import numpy as np
import pytest
from forks import CONFIG, Blow, left, nursery, results

from stepjax.run.monitor import Monitor

LIMIT = 30  # --host-timeout
SLACK = 60  # seconds more, on a machine that is busy
# The phases of a run in their order, each with a function that it calls.
PHASES = {
    "preparation": Blow("stepjax.run.data:prepare", 1),
    "greedy evaluation": Blow("stepjax.evaluation.grading:right_so_far", 1),
    "judge evaluation": Blow("stepjax.evaluation.grading:judge_metrics", 1),
    "first update": Blow("stepjax.lm.train:put_batch", 1),
    "update": Blow("stepjax.lm.train:put_batch", 7),
    "save": Blow("stepjax.lm.checkpoint:save_tree", 1),
    "a record is written": Blow("stepjax.lm.files:write_json", 1),
    "search evaluation": Blow("stepjax.evaluation.causes:of_search", 1),
    "search": Blow("stepjax.iterate:pairs_of", 1),
    "turn of a search": Blow("stepjax.search:slots_to_refill", 3),
    "reference": Blow("stepjax.run.reference_pass:Row", 2),
    "step-DPO": Blow("stepjax.dpo:loss", 1),
    "last evaluation": Blow("stepjax.evaluation.diagnose:pair_quality", 1),
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    cache = os.environ.get("RELIABILITY_CACHE") or tmp_path_factory.mktemp("compiled")
    with nursery(pathlib.Path(cache)) as nurse:
        yield nurse


@pytest.fixture(scope="module")
def whole(started, tmp_path_factory):
    """An unbroken run of two hosts."""
    folder = tmp_path_factory.mktemp("whole")
    ended = started.hosts(2, run(folder / "run"), folder / "logs")
    assert [host.status for host in ended] == [0, 0], ended[0].text[-3000:]
    return folder / "run"


def run(folder, *more):
    return "run", f"--config={CONFIG}", f"--workdir={folder}", *more


def note(name, figures):
    """Adds to the file of figures that the environment names, if it does."""
    if path := os.environ.get("RELIABILITY_FIGURES"):
        path = pathlib.Path(path)
        kept = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(kept | {name: figures}, indent=1))


@pytest.mark.slow
@pytest.mark.parametrize("first_victim", [0, 1])
def test_the_other_host_names_the_killed_one_and_nothing_is_lost(
    first_victim, started, whole, tmp_path
):
    """Each phase is one kill of one chain; the victim alternates."""
    folder, seconds = tmp_path / "run", {}
    for order, (phase, blow) in enumerate(PHASES.items()):
        victim = (first_victim + order) % 2
        arguments = run(folder, f"--host-timeout={LIMIT}")
        ended = started.hosts(2, arguments, tmp_path / phase, blows={victim: blow})
        said = (
            f"{phase}, host {victim}: {ended[0].text[-1500:]} {ended[1].text[-1500:]}"
        )
        if [host.status for host in ended] == [0, 0]:
            continue  # an earlier kill has left nothing to do in this phase
        other = ended[1 - victim]
        assert ended[victim].status == -signal.SIGKILL, said
        assert other.status == 1, said
        name = f"host {victim} ({socket.gethostname()}) has "
        assert other.last().startswith(f"stepjax: {name}"), said
        (struck,) = (tmp_path / phase).glob("*.struck")
        seconds[phase] = other.ended - float(struck.read_text())
    note(f"kills, first victim {first_victim}", seconds)
    assert len(seconds) >= len(PHASES) - 2, seconds
    assert max(seconds.values()) < LIMIT + SLACK, seconds
    ended = started.hosts(2, run(folder), tmp_path / "last")
    assert [host.status for host in ended] == [0, 0], ended[0].text[-3000:]
    assert results(folder) == results(whole)
    assert left(folder) == []


@pytest.mark.slow
def test_a_signal_to_one_host_stops_both_after_the_same_unit(started, whole, tmp_path):
    folder, seconds, logs = tmp_path / "run", {}, []
    for order, (phase, blow) in enumerate(PHASES.items()):
        number = (signal.SIGTERM, signal.SIGINT)[order % 2]
        blow = blow._replace(number=number)
        logs.append(
            started.hosts(2, run(folder), tmp_path / phase, blows={order % 2: blow})
        )
        said = [host.text[-1500:] for host in logs[-1]]
        statuses = [host.status for host in logs[-1]]
        if statuses == [0, 0]:
            continue
        assert statuses == [128 + number] * 2, (phase, said)
        lines = [host.last() for host in logs[-1]]
        assert all(line.startswith("stepjax: stopped: ") for line in lines), said
        if "update" in lines[0] or "batches" in lines[0]:
            assert lines[0] == lines[1]
        seconds[phase] = max(host.seconds for host in logs[-1])
    note("signals to one of two hosts", seconds)
    logs.append(started.hosts(2, run(folder), tmp_path / "last"))
    assert [host.status for host in logs[-1]] == [0, 0], logs[-1][0].text[-3000:]
    assert results(folder, but_logps=True) == results(whole, but_logps=True)
    assert left(folder) == []


@pytest.mark.slow
def test_a_run_goes_on_with_other_hosts_and_devices(started, tmp_path):
    """1 host of 8 devices, then 2 of 4, 4 of 1, 1 of 1: the same rows and losses."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    stop = Blow("stepjax.lm.train:put_batch", 9, signal.SIGTERM)

    def train(folder, count, devices, blow=None):
        arguments = "sft", *run(folder)[1:]
        logs = folder.with_name(f"{folder.name}_{count}_{devices}")
        blows = {0: blow} if blow else {}
        return started.hosts(count, arguments, logs, devices=devices, blows=blows)

    assert train(whole, 1, 1)[0].status == 0
    for count, devices in ((1, 8), (2, 4), (4, 1)):
        ended = train(folder, count, devices, stop)
        assert [host.status for host in ended] == [143] * count, ended[0].text[-3000:]
        assert re.search(r"stopped: update \d+ of", ended[0].last())
    assert train(folder, 1, 1)[0].status == 0
    one, other = (Monitor(f).rows() for f in (folder, whole))
    assert [(r["stage"], r["step"]) for r in one] == [
        (r["stage"], r["step"]) for r in other
    ]
    losses = [np.array([row["loss"] for row in rows]) for rows in (one, other)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    differences = abs(losses[0] / losses[1] - 1).tolist()
    note("losses on other meshes, largest relative difference", max(differences))
