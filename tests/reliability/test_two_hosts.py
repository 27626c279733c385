"""One of two hosts is killed, or gets a signal, in every phase; other meshes on resume.

The hosts are processes on this machine. With STEPJAX_FIGURES=FOLDER the runs, the
compiled programs and what is done are kept there, so that a test that was stopped goes
on. Hosts that do not come are in tests/lm/test_roll_call.py.
"""

import json
import os
import pathlib
import re
import signal
import socket

import numpy as np
import pytest
from commands import left
from forks import CONFIG, Blow, nursery, results

from stepjax.run.monitor import Monitor

LIMIT = 30  # --host-timeout
SLACK = 60  # seconds more, on a machine that is busy
# The phases of a run in their order, each with a function that it calls.
PHASES = {
    "preparation": Blow("stepjax.run.prepare:prepare", 1),
    "greedy evaluation": Blow("stepjax.evaluation.grading:right_so_far", 1),
    "judge evaluation": Blow("stepjax.evaluation.grading:judge_metrics", 1),
    "first update": Blow("stepjax.lm.train:put_batch", 1),
    "update": Blow("stepjax.lm.train:put_batch", 7),
    "save": Blow("stepjax.lm.checkpoint:save_tree", 1),
    "a record is written": Blow("stepjax.lm.files:write_json", 1),
    "search evaluation": Blow("stepjax.evaluation.causes:of_search", 1),
    "turn of a search": Blow("stepjax.search:slots_to_refill", 3),
    "search": Blow("stepjax.iterate:pairs_of", 1),
    "reference": Blow("stepjax.run.reference_pass:Row", 1),
    "step-DPO": Blow("stepjax.dpo:loss", 1),
    "last evaluation": Blow("stepjax.evaluation.diagnose:pair_quality", 1),
}
OF_THE_FIRST = ("a record is written",)  # phases in which the other hosts do nothing


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of the tests, which STEPJAX_FIGURES keeps."""
    kept = os.environ.get("STEPJAX_FIGURES")
    folder = pathlib.Path(kept or tmp_path_factory.mktemp("hosts")) / "two_hosts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def started(place):
    with nursery(place / "compiled") as nurse:
        yield nurse


@pytest.fixture(scope="module")
def whole(started, place):
    """An unbroken run of two hosts."""
    ended = started.hosts(2, run(place / "whole"), place / "whole_logs")
    assert [host.status for host in ended] == [0, 0], ended[0].text[-3000:]
    return place / "whole"


def run(folder, *more):
    return "run", f"--config={CONFIG}", f"--workdir={folder}", *more


def chain(started, place, name, numbers, first):
    """Sends one signal per phase to one of two hosts, and runs to the end.

    Args:
      started: starts hosts.
      place: folder of the run, of its logs and of what is done.
      name: of the run.
      numbers: signals, in turns.
      first: the host that gets the first one; the other host gets the next.

    Returns:
      Phase → (host, signal, statuses of both, their last lines, seconds from the
      signal to the end of the last host).
    """
    kept, folder = place / f"{name}.json", place / name
    done = json.loads(kept.read_text()) if kept.exists() else {}
    arguments = run(folder, f"--host-timeout={LIMIT}")
    for order, (phase, blow) in enumerate(PHASES.items()):
        if phase in done:
            continue
        struck, number = (first + order) % 2, numbers[order % len(numbers)]
        struck = 0 if phase in OF_THE_FIRST else struck
        logs = place / f"{name}_logs" / phase
        blows = {struck: blow._replace(number=number)}
        ended = started.hosts(2, arguments, logs, blows=blows)
        files = sorted(logs.glob("*.struck"), key=lambda path: path.stat().st_mtime)
        at = float(files[-1].read_text()) if files else 0.0
        done[phase] = (
            struck,
            number,
            [host.status for host in ended],
            [host.last() for host in ended],
            max(host.ended for host in ended) - at,
        )
        kept.write_text(json.dumps(done, indent=1))
    ended = started.hosts(2, arguments, place / f"{name}_logs" / "last")
    assert [host.status for host in ended] == [0, 0], ended[0].text[-3000:]
    assert left(folder) == []
    return done


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_the_other_host_names_the_killed_one_and_nothing_is_lost(
    first, started, whole, place
):
    """Each phase is one kill of one chain; the victim alternates."""
    name = f"killed_{first}"
    for phase, row in chain(started, place, name, [signal.SIGKILL], first).items():
        victim, _, statuses, said, seconds = row
        assert statuses[victim] == -signal.SIGKILL, (phase, row)
        assert statuses[1 - victim] == 1, (phase, row)
        expected = f"stepjax: host {victim} ({socket.gethostname()}) has "
        assert said[1 - victim].startswith(expected), (phase, row)
        assert seconds < LIMIT + SLACK, (phase, row)
    assert results(place / name) == results(whole)


@pytest.mark.slow
def test_a_signal_to_one_host_stops_both_after_the_same_unit(started, whole, place):
    numbers = [signal.SIGTERM, signal.SIGINT]
    for phase, row in chain(started, place, "signalled", numbers, 0).items():
        _, number, statuses, said, _ = row
        if phase == "last evaluation" and statuses == [0, 0]:
            continue  # nothing was left to stop
        assert statuses == [128 + number] * 2, (phase, row)
        assert all(line.startswith("stepjax: stopped: ") for line in said), (phase, row)
        if "update" in said[0] or "batches" in said[0]:
            assert said[0] == said[1], (phase, row)
    one, other = (
        results(folder, but_logps=True) for folder in (place / "signalled", whole)
    )
    assert one == other


@pytest.mark.slow
def test_a_run_goes_on_with_other_hosts_and_devices(started, tmp_path, place):
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
    worst = abs(losses[0] / losses[1] - 1).max()
    (place / "meshes.json").write_text(json.dumps({"largest difference": worst}))
