"""What `stepjax check` compares, on one device and on eight, and what it refuses."""

import jax
import numpy as np
import pytest
from runs import command, one_device_mesh

from stepjax.lm import sharding
from stepjax.run import check_device


@pytest.fixture(scope="module")
def on_eight():
    assert jax.device_count() == 8
    return check_device.measure()


def test_eight_devices_compute_the_stored_numbers(on_eight):
    rows = check_device.compare(on_eight, "cpu")
    assert len(rows) == 9 and all(row.good for row in rows), rows
    assert on_eight.drawn.tolist() == check_device.STORED.drawn.tolist()
    assert on_eight.saved
    assert on_eight.losses[0] == pytest.approx(np.log(2), abs=1e-6)


def test_one_device_computes_what_eight_do(on_eight, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", one_device_mesh)
    one = check_device.measure()
    assert np.abs(one.forest - on_eight.forest).max() < 1e-4
    assert one.drawn.tolist() == on_eight.drawn.tolist()
    assert abs(one.gradient - on_eight.gradient) < 1e-4
    assert np.abs(one.losses - on_eight.losses).max() < 1e-5


def test_a_wrong_number_is_named_and_ends_the_command(on_eight, monkeypatch, capsys):
    shifted = on_eight._replace(plain=on_eight.plain + 2.0, saved=False)
    bad = [row.name for row in check_device.compare(shifted, "tpu") if not row.good]
    assert bad == [
        "forest rows, against plain rows here",
        "share of saves that come back changed",
    ]
    not_a_number = on_eight._replace(gradient=float("nan"))
    (row,) = [r for r in check_device.compare(not_a_number, "gpu") if not r.good]
    assert row.name == "gradient norm, against a CPU's number"
    monkeypatch.setattr(check_device, "measure", lambda say: shifted)
    assert command("check") == 1
    said = capsys.readouterr().err
    assert "2 of 9 comparisons are wrong: forest rows, against plain rows here;" in said
    monkeypatch.setattr(check_device, "measure", lambda say: on_eight)
    assert command("check") == 0
    out, said = capsys.readouterr()
    assert "all 9 comparisons are good" in out and "jax 0." in said
    assert "8 x cpu (cpu)" in out


def test_the_command_reads_no_options(capsys):
    assert command("check", "--workdir=/nowhere") == 2
    assert "--workdir: `stepjax check` does not read this" in capsys.readouterr().err
