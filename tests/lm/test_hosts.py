"""Several hosts: they find each other, wait with a limit, and share the work."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import xla_flags
from tiny_config import get_config

from stepjax import config
from stepjax.lm import checkpoint, files, hosts, tokenizer
from stepjax.lm import model as lm
from stepjax.settings import from_config, model_config

ROOT = pathlib.Path(__file__).parents[2]
POD = ROOT / "tpu_scripts/local_pod.sh"


def pod(count, devices, *command, logs, seconds):
    """Runs a command as `count` processes and returns what they print."""
    environment = os.environ | {
        "XLA_FLAGS": xla_flags.QUICK,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "LOGS": str(logs),
    }
    made = subprocess.run(
        [POD, str(count), str(devices), *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
    )
    others = "".join(path.read_text() for path in logs.glob("*.log"))
    text = made.stdout + made.stderr + others
    assert made.returncode == 0, text[-3000:]
    return text


def test_two_hosts_wait_agree_and_share(tmp_path):
    program = ROOT / "tests/hosts_program.py"
    logs = tmp_path / "logs"
    pod(2, 2, sys.executable, program, tmp_path, logs=logs, seconds=240)
    one, other = (
        json.loads((tmp_path / f"host_{n}.json").read_text()) for n in range(2)
    )
    late = one.pop("late")
    assert late.startswith("after 1 s at 'supper': host 1 (")
    assert f"host 1 ({socket.gethostname()}) did not come" in late
    assert one == other  # in everything else
    assert (one["count"], one["devices"]) == (2, 4)
    assert one["agreed"] == [10, 20]
    assert one["merged"] == [f"item {n} by {n % 2}" for n in range(7)]
    assert one["rows here"] == 4
    assert one["local"] == [True, list(range(8))]
    # The digest that two hosts compute together is the one of a single process.
    tokens = np.stack([[1, 2, n] for n in range(8)])[None].astype(np.int32)
    assert one["digest"] == checkpoint.array_digests([tokens])["[0]"]
    assert not list(tmp_path.glob("*.part-*"))


def test_a_wrong_number_of_hosts_is_refused_at_once(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    for expected in (1, 2):
        with pytest.raises(ValueError, match=f"--hosts={expected} and .* of 4 hosts"):
            hosts.start(expected)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="--hosts=1 .* 2 hosts; expected --hosts=2"):
        hosts.start(1)
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    hosts.start(1)  # nobody to join
    assert hosts.first() and hosts.count() == 1
    assert list(hosts.share([1, 2, 3])) == [1, 2, 3]
    hosts.barrier("alone")


@pytest.mark.parametrize(
    ("address", "count", "number"),
    [("", "2", "0"), ("a:1", "2", ""), ("a:1", "two", "0"), ("a:1", "2", "2")],
)
def test_variables_that_do_not_tell_where_a_host_is_are_named(
    address, count, number, monkeypatch
):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_NUM_PROCESSES", count)
    monkeypatch.setenv("JAX_PROCESS_ID", number)
    named = f"JAX_COORDINATOR_ADDRESS='{address}', JAX_NUM_PROCESSES='{count}', "
    with pytest.raises(ValueError) as raised:
        hosts.start(2)
    assert str(raised.value).startswith(f"{named}JAX_PROCESS_ID='{number}'; expected")


@pytest.mark.parametrize("task", ["/job:jax_worker/replica:0/task:", ""])
def test_what_jax_says_about_the_missing_is_put_in_words(task, monkeypatch):
    """JAX 0.10 and 0.12 name a host differently."""
    text = (
        "DEADLINE_EXCEEDED: Barrier timed out. Id: start/1::0.\n"
        "# of tasks that reached the barrier: {}.\nThe first task at the barrier: "
        f"{task}0. Some timed out task names:\n{task}3\n{task}1\n\n\nRPC: /x/Barrier 7"
    )
    error = RuntimeError(text.format("2/4"))
    assert hosts._told(error) == "missing: host 1, host 3"
    monkeypatch.setattr(hosts, "_names", ["a", "b", "c", "d"])
    assert hosts._told(error) == "missing: host 1 (b), host 3 (d)"
    error = RuntimeError(text.format("2/14"))
    assert hosts._told(error) == "missing: host 1 (b), host 3 (d), 10 more"
    assert hosts._told(RuntimeError("host 4  is\ndown")) == "host 4 is down"


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path):
    """The whole loop; one process adds the sums of its devices in the same order."""
    folders = []
    for count, devices in ((1, 8), (2, 4)):
        folders.append(tmp_path / f"run_{count}")
        text = pod(
            count,
            devices,
            *(sys.executable, "-m", "stepjax", "run"),
            "--config=tests/tiny_config.py",
            f"--workdir={folders[-1]}",
            logs=tmp_path / f"logs_{count}",
            seconds=1500,
        )
        assert "Involuntary full rematerialization" not in text
    one, two = folders
    for number in (1, 2):
        pairs = [
            [
                {k: row[k] for k in ("context_ids", "chosen_ids", "rejected_ids")}
                for row in map(json.loads, open(f / f"M{number}/pairs.jsonl"))
            ]
            for f in folders
        ]
        assert pairs[0] == pairs[1] and len(pairs[0]) > 20
    vocabulary = tokenizer.load(one / "tokenizer").vocab_size
    model = lm.Decoder(model_config(from_config(get_config()), vocabulary))
    for number in (1, 2, 3):
        trees = [parameters(f / f"M{number}", model) for f in folders]
        for a, b in zip(*trees, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for path in (one / "eval").glob("*.json"):
        a, b = (files.read_json(f / "eval" / path.name) for f in (one, two))
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-5), path.name
    settings = files.read_json(one / "config.json")
    assert settings == config.to_dict(get_config())


@pytest.mark.slow
def test_two_processes_make_the_eft_rows_of_one(tmp_path):
    """Policy, PRM, tree search with a host's own share of the trees, and teacher."""
    folders = []
    for count, devices in ((1, 8), (2, 4)):
        folders.append(tmp_path / f"run_{count}")
        pod(
            count,
            devices,
            *(sys.executable, "-m", "stepjax", "init-data", "eft"),
            "--config=tests/tiny_eft_config.py",
            f"--workdir={folders[-1]}",
            logs=tmp_path / f"logs_{count}",
            seconds=1500,
        )
    one, two = folders
    for name in ("pairs", "teacher"):
        path = f"init/{name}.jsonl"
        assert (one / path).read_bytes() == (two / path).read_bytes(), name
    rows = (one / "data/eft.jsonl").read_text("utf-8")
    assert (two / "data/eft.jsonl").read_text("utf-8") == rows
    assert len(rows.splitlines()) > 40 and not list(two.rglob("*part*"))
    metrics = [
        files.read_json(f / "init/prm/manifest.json")["metrics"] for f in folders
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-6)
    lines = (one / "data/labels_heldout.jsonl").read_text("utf-8").splitlines()
    assert metrics[0]["steps"] == sum(len(json.loads(x)["steps"]) for x in lines) > 12


def parameters(folder, model):
    import jax

    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device),
        lm.unboxed(lm.abstract_params(model)),
    )
    digests = files.read_json(folder / "manifest.json")["arrays"]
    tree = checkpoint.load_tree(folder / "params", like, digests)
    return [np.asarray(x) for x in jax.tree.leaves(tree)]
