"""Streams of records: their order, hosts, kills; what is imported and printed."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from data_rows import numbered_solutions

from stepjax import records
from stepjax.initial_data.formats import tfds, tfds_builder
from stepjax.records import (
    Question,
    Solution,
)

pytest.importorskip("tensorflow_datasets")

ROOT = pathlib.Path(records.__file__).parent.parent


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Place of 23 solutions s0, s1, ..."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds_builder.write(
        {"train": numbered_solutions(23)}, "mine", folder, record_type=Solution
    )
    return f"tfds:mine/train?data_dir={folder}"


def ids(stream):
    return [row.id for row in stream]


def test_a_stream_without_a_seed_has_the_order_of_the_dataset(many):
    rows = list(tfds.stream(many, Solution, epochs=2))
    assert rows == 2 * numbered_solutions(23)
    batches = list(tfds.stream(many, Solution, epochs=2, batch_size=8))
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 6]
    assert [row for batch in batches for row in batch] == rows


def test_a_seed_gives_every_row_once_per_epoch_in_an_order_of_its_own(many):
    whole = {f"s{n}" for n in range(23)}
    orders = [
        ids(tfds.stream(many, Solution, seed=seed, epochs=2)) for seed in (3, 3, 4)
    ]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        first, second = order[:23], order[23:]
        assert set(first) == set(second) == whole and first != second
        assert first != [f"s{n}" for n in range(23)]


@pytest.mark.parametrize("hosts", [2, 3, 50])
def test_hosts_in_turns_give_the_rows_of_one_host(many, hosts):
    one = ids(tfds.stream(many, Solution, seed=5, epochs=3))
    shares = [
        ids(tfds.stream(many, Solution, seed=5, epochs=3, host=host, hosts=hosts))
        for host in range(hosts)
    ]
    assert [shares[n % hosts][n // hosts] for n in range(69)] == one
    assert sum(map(len, shares)) == 69
    assert {len(share) for share in shares} <= {69 // hosts, 69 // hosts + 1}


def test_an_iterator_goes_on_after_any_row(many):
    options = dict(seed=1, epochs=2, batch_size=4, host=1, hosts=2)
    whole = list(tfds.stream(many, Solution, **options))
    assert len(whole) == 6
    for stop in range(7):
        iterator = iter(tfds.stream(many, Solution, **options))
        done = [next(iterator) for _ in range(stop)]
        state = json.loads(json.dumps(iterator.get_state()))
        again = iter(tfds.stream(many, Solution, **options))
        again.set_state(state)
        assert done + list(again) == whole


def test_numbers_out_of_range_are_refused(many, tmp_path):
    for options in (
        {"epochs": 0},
        {"host": 2, "hosts": 2},
        {"host": -1},
        {"hosts": 0},
        {"batch_size": -1},
    ):
        with pytest.raises(ValueError, match="expected at least 1 epoch"):
            tfds.stream(many, Solution, **options)
    with pytest.raises(ValueError, match="[Ss]eed"):
        tfds.stream(many, Solution, seed=-1)
    tfds_builder.write({"none": []}, "empty", tmp_path, record_type=Question)
    with pytest.raises(ValueError, match="empty/none: no rows; expected at least one"):
        tfds.stream(f"tfds:empty/none?data_dir={tmp_path}", Question)


def start(place, path, options, pause):
    program = ROOT / "tests/tfds_program.py"
    command = [sys.executable, program, place, path, json.dumps(options), str(pause)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def seen(path):
    if not path.exists():
        return []
    return [name for batch in json.loads(path.read_text())["seen"] for name in batch]


@pytest.mark.parametrize("hosts", [1, 2])
def test_processes_killed_in_the_middle_of_an_epoch_miss_and_repeat_nothing(
    many, hosts, tmp_path
):
    shared = dict(seed=9, epochs=2, hosts=hosts, batch_size=2)
    one = ids(tfds.stream(many, Solution, seed=9, epochs=2))
    paths = [tmp_path / f"host{host}.json" for host in range(hosts)]
    options = [shared | {"host": host} for host in range(hosts)]
    pairs = list(zip(paths, options, strict=True))
    running = [start(many, path, these, 0.4) for path, these in pairs]
    alive = dict(zip(paths, running, strict=True))
    try:
        deadline = time.monotonic() + 60
        while alive and time.monotonic() < deadline:
            for path in [path for path in alive if len(seen(path)) >= 4]:
                alive.pop(path).kill()
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()
            process.wait()
    before = [seen(path) for path in paths]
    assert all(4 <= len(rows) < 23 // hosts for rows in before)  # in the first epoch
    running = [start(many, path, these, 0) for path, these in pairs]
    for process in running:
        printed, noise = process.communicate(timeout=120)
        assert process.returncode == 0, noise
        assert printed == "[]\n"  # neither TensorFlow nor torch
        assert noise == ""
    shares = [seen(path) for path in paths]
    assert all(
        now[: len(then)] == then for now, then in zip(shares, before, strict=True)
    )
    assert [shares[n % hosts][n // hosts] for n in range(46)] == one
    assert sum(map(len, shares)) == 46


# What is imported, printed and asked for.


def test_nothing_is_printed_nothing_asked_of_the_network_and_no_tensorflow(tmp_path):
    script = f"""
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError(f"the network was asked: {{arguments}}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from stepjax.initial_data.formats import tfds, tfds_builder
from stepjax.records import Question
assert "tensorflow_datasets" not in sys.modules and "grain" not in sys.modules
rows = [Question(str(n), "x") for n in range(50)]
splits = {{"train": rows, "none": []}}
tfds_builder.write(splits, "mine", {str(tmp_path)!r}, record_type=Question)
place = "tfds:mine/train?data_dir={tmp_path}"
assert tfds.read(place, Question) == rows == list(tfds.stream(place, Question))
assert tfds.read(place.replace("train", "none"), Question) == []
try:
    tfds.read(place.replace("mine", "gsm8k"), Question)
except ValueError as error:
    assert "no dataset 'gsm8k'" in str(error)
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"tensorflow", "torch"}}, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "array_record", "grain"])
def test_a_missing_library_is_named_with_the_remedy(missing, many, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"{missing}.*pip install -e \"\.\[data\]\""):
        tfds.stream(many, Solution)


def test_moved_datasets_are_read_where_they_are(many, tmp_path):
    folder = pathlib.Path(many.partition("data_dir=")[2])
    shutil.copytree(folder / "mine", tmp_path / "renamed dir/mine")
    place = f"tfds:mine/train?data_dir={tmp_path}/renamed dir"
    assert tfds.read(place, Solution) == numbered_solutions(23)
