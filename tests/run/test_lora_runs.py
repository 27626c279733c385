"""A run with adapters: what its models are on the disk, what trains and samples."""

import math
import re

import jax
import numpy as np
import pytest
from runs import (
    CONFIG,
    assert_same_results,
    command,
    copy_files,
    finished_run,
    kill,
    made_once,
)
from tiny_config import changed

from stepjax import config, dpo, iterate
from stepjax.evaluation import dry_run
from stepjax.lm import checkpoint, files, hf_config, lora, train, weights
from stepjax.lm import model as lm
from stepjax.run import base, manifest
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run

pytestmark = pytest.mark.usefixtures("quick_runs")
TRAINED = 2048  # numbers of adapters of rank 4 in the tiny model
WHOLE = 9104  # numbers of the tiny model


def pretrained():
    """Returns the folder of M0: an export of M1 of the finished tiny run."""

    def make(folder):
        run = folder.with_name("lora_source")
        copy_files(finished_run(), run)
        command("export", f"--workdir={run}", "--model=M1", f"--out={folder}")

    return made_once("lora_base", make)


def settings(**changes):
    c = changed(model__init=f"hf:{pretrained()}", iterations=2, lora__rank=4)
    c.train.log_every = 1
    half = {"ift": 0.5, "eft": 0.5, "epochs": 0, "batch_size": 16}
    rate = config.optimizer(1e-3)
    c.sft.phases = (
        config.phase("first", steps=12, **half, optimizer=rate),
        config.phase("second", steps=12, **half, optimizer=rate),
    )
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def with_adapters():
    """Returns the folder of a finished run with adapters of rank 4."""
    return made_once("lora_run", lambda folder: iterate.run(settings(), folder))


@pytest.fixture
def finished_lora(tmp_path):
    copy_files(with_adapters(), tmp_path / "run")
    return tmp_path / "run"


def test_a_models_folder_holds_adapters_and_names_their_base(finished_lora):
    made = [manifest.read(finished_lora / f"M{n}/manifest.json") for n in (1, 2, 3)]
    assert not (finished_lora / "M0").exists()
    names = {
        f"['layers']['{name}_lora']['{part}']" for name in lora.LAYERS for part in "ab"
    }
    for one in made:
        assert set(one["arrays"]) == names | {"base"}
    digests = [one["arrays"]["base"] for one in made]
    assert len(set(digests)) == 1
    assert len({str(one["arrays"]) for one in made}) == 3  # each was trained
    run = Run(settings(), finished_lora)
    fixed, trained = lora.counts(run.params(2))
    assert (trained, fixed + trained) == (TRAINED, WHOLE + TRAINED)


def test_models_and_their_sampler_share_one_base(finished_lora):
    run = Run(settings(), finished_lora)
    one, two = run.params(1), run.params(2)
    sampling, reference = run.for_sampling(two), run.frozen(two)

    def places(params):
        fixed, _ = lora.split(params)
        return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(fixed)]

    assert places(one) == places(two) == places(sampling) == places(reference)
    _, adapters = lora.split(two)
    _, copied = lora.split(reference)  # training donates those of the policy
    for a, b in zip(*map(jax.tree.leaves, (adapters, copied)), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
        np.testing.assert_array_equal(a, b)


def test_the_base_is_m0_and_its_numbers_never_change(finished_lora):
    run = Run(settings(), finished_lora)
    fixed, adapters = lora.split(run.params(0))
    stored = weights.load_hf(pretrained(), base.plain(run.model).config)
    for a, b in zip(*map(jax.tree.leaves, (fixed, stored)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not any(adapter["b"].any() for adapter in adapters["layers"].values())
    fixed, _ = lora.split(run.params(3))
    for a, b in zip(*map(jax.tree.leaves, (fixed, stored)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("model", ["M2", "M3"])
def test_the_first_loss_of_step_dpo_in_a_run_is_ln_2(finished_lora, model):
    rows = Monitor(finished_lora).rows()
    rows = [row for row in rows if row["stage"] == "dpo" and row["model"] == model]
    assert rows[0]["step"] == 1
    losses = [row["loss"] for row in rows]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(losses) > 2 and abs(losses[-1] - math.log(2)) > 1e-4


@pytest.mark.slow
def test_a_killed_run_ends_as_the_unbroken_one(finished_lora, tmp_path):
    folder = tmp_path / "killed"
    copy_files(finished_lora, folder, "M*", "eval", "metrics.jsonl", "log.txt")
    options = settings(train__checkpoint_every=2)
    for update in (7, 17):  # counted again by each command
        when = _reaches(update)
        with kill(train, "put_batch", when), pytest.raises(KeyboardInterrupt):
            iterate.run(options, folder)
    states = list(folder.glob("M1/train/phase_*/step_*.json"))
    assert states
    record = files.read_json(max(states))
    adapters = 2 * len(lora.LAYERS)
    counters = [name for name in record["digests"] if "count" in name]
    assert len(record["digests"]) == 3 * adapters + len(counters)
    with (
        kill(dpo, "loss", lambda count, args: True),
        pytest.raises(KeyboardInterrupt),
    ):
        iterate.run(options, folder)
    iterate.run(options, folder)
    assert_same_results(finished_lora, folder)


def _reaches(update):
    return lambda count, args: count == update


def test_an_export_is_base_and_adapters_in_plain_matrices(finished_lora, tmp_path):
    out = tmp_path / "out"
    arguments = [f"--workdir={finished_lora}", "--model=M3", f"--out={out}"]
    assert command("export", *arguments, "--verify") == 0
    exported = hf_config.config_from_hf(out)
    merged = weights.load_hf(out, exported)
    run = Run(settings(), finished_lora)
    params = run.params(3)
    assert jax.tree.structure(merged) == jax.tree.structure(lora.split(params)[0])
    tokens = np.arange(2 * 30).reshape(2, 30) % 40
    position, end = np.broadcast_to(np.arange(30), (2, 30)), np.full((2, 30), 30)
    found = [
        lm.logits(p, model.apply({"params": p}, tokens, position, end))
        for model, p in (
            (run.model, params),
            (lm.Decoder(exported), jax.tree.map(jax.numpy.asarray, merged)),
            (run.model, run.params(1)),
        )
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert float(abs(found[2] - found[0]).max()) > 1e-3


def test_other_weights_of_m0_are_refused(finished_lora, tmp_path):
    file = finished_lora / "M2/manifest.json"
    made = files.read_json(file)
    made["arrays"]["base"] = "0" * 64
    files.write_json(file, made, sealed=True)
    run = Run(settings(), finished_lora)
    run.params(1)
    with pytest.raises(ValueError, match="M2/manifest.json: the adapters were trained"):
        run.params(2)


def test_another_rank_makes_other_models(finished_lora):
    words = r"lora.rank was 4, now 8. M1, .* --redo=sft"
    with pytest.raises(ValueError, match=words):
        Run(settings(lora__rank=8), finished_lora)
    # M0 is what it was, and so is what was measured of it.
    kept = {p.name for p in (finished_lora / "eval").glob("M0_*")}
    run = Run(settings(lora__rank=8), finished_lora, "sft")
    run.accept()
    assert kept == {p.name for p in (finished_lora / "eval").glob("M*")}


def test_a_dry_run_and_the_first_lines_count_adapters(finished_lora, capfd):
    text = dry_run.dry_run(Run(settings(), finished_lora))
    needed = f"{(16 * TRAINED + 4 * WHOLE) / 1000:.1f} kB"
    line = f"  model: {TRAINED:,} parameters of adapters beside {WHOLE:,} of their base"
    assert f"{line}; training holds about {needed} for them" in text
    said = capfd.readouterr().err
    assert f"{WHOLE + TRAINED:,} parameters, 2 layers of 16, computed in fl" in said
    assert f"of these, {TRAINED:,} are trained, in adapters of rank 4 (LoRA)" in said


def test_the_base_is_read_in_the_compute_type_and_exported_exactly(tmp_path):
    run = Run(settings(model__dtype="bfloat16"), tmp_path / "run")
    with kill(weights, "_empty", None) as made:
        params = run.params(0)
    assert {dtype for _, _, dtype in made} == {"bfloat16"}  # float32 never was there
    fixed, adapters = lora.split(params)
    assert {x.dtype.name for x in jax.tree.leaves(fixed)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(adapters)} == {"float32"}
    merged = base.merged(run.settings, run.dir.path, run.model, params)
    stored = weights.load_hf(pretrained(), base.plain(run.model).config)
    digests = map(checkpoint.array_digests, (merged, stored))
    assert len(set(map(str, digests))) == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lora.rank=-1", "lora.rank=-1; expected 0 to 65,536"),
        ("lora.alpha=0.0", "lora.alpha=0.0; expected above 0"),
        ("lora.layers=('queries',)", "lora.layers=.'queries',.; expected at least one"),
        ("lora.layers=('key', 'key')", "expected at least one of .*each at most once"),
    ],
)
def test_settings_of_adapters_that_cannot_work_are_named(
    setting, words, tmp_path, capsys
):
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}"]
    assert command("run", *arguments, f"--config.{setting}") == 2
    assert re.search(words, capsys.readouterr().err)
