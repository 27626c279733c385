"""Runs whose M0 is pretrained: from Hugging Face directories and from GGUF files."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from gguf_models import sizes, write_gguf, write_world_model
from runs import command, contents
from tiny_config import changed

from stepjax.lm import checkpoint, export, files, hf_config, tokenizer, weights
from stepjax.lm import model as lm
from stepjax.run import data
from stepjax.run.run import Run
from stepjax.settings import from_config, model_config

pytestmark = pytest.mark.usefixtures("quick_runs")
SHAPE = lm.ModelConfig(
    vocab_size=136,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    rope_theta=700.0,
    qkv_bias=False,
)


def random_params(seed=0):
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: draw.normal(size=x.shape).astype(np.float32),
        lm.unboxed(lm.abstract_params(lm.Decoder(SHAPE))),
    )


@pytest.fixture
def pretrained(codec, tmp_path):
    """A Hugging Face directory with the world's tokenizer: models/m."""
    folder = tmp_path / "models" / "m"
    folder.parent.mkdir()
    export.save_hf(
        random_params(),
        SHAPE,
        folder,
        tokenizer_directory=codec.tokenizer.directory,
        stop_ids=(codec.tokenizer.eos_id, 5),
        bos_id=codec.tokenizer.bos_id,
        context_length=300,
    )
    return folder


def assert_same(found, expected):
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_run_needs_only_the_weights_from_where_m0_was(
    pretrained, tmp_path, monkeypatch, capsys
):
    sampling = {"eos_token_id": [1, 5], "temperature": 0.6}
    (pretrained / "generation_config.json").write_text(json.dumps(sampling))
    settings = changed(model__init="hf:models/m")
    monkeypatch.chdir(tmp_path)
    run = Run(settings, tmp_path / "run")
    assert run.model.config.rope_theta == 700.0
    assert run.codec.tokenizer.stop_ids == (run.codec.tokenizer.eos_id, 5)
    assert_same(run.params(0), random_params())
    # From another working directory, M0 is still found.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_same(Run(settings, tmp_path / "run").params(0), random_params())
    # A run that was moved together with its model finds it by the path as written.
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "models", tmp_path / "moved" / "models")
    monkeypatch.chdir(tmp_path / "moved")
    assert_same(Run(settings, tmp_path / "run").params(0), random_params())
    # Without the model, everything but M0 works.
    shutil.rmtree(tmp_path / "moved" / "models")
    run = Run(settings, tmp_path / "run")
    with pytest.raises(ValueError) as error:
        run.params(0)
    for words in (f"{tmp_path}/models/m and {tmp_path}/moved/models/m", "no such file"):
        assert words in str(error.value)
    arrays = run.save(
        run.dir.model(1), jax.tree.map(jax.numpy.asarray, random_params(1))
    )
    manifest = {"arrays": arrays, "inputs": {}, "files": {}}
    files.write_json(run.dir.model(1) / "manifest.json", manifest)
    out = tmp_path / "out"
    arguments = [f"--workdir={tmp_path / 'run'}", "--model=M1", f"--out={out}"]
    assert command("export", *arguments, "--dtype=bfloat16", "--verify") == 0
    said = capsys.readouterr().err
    size = sum(path.stat().st_size for path in out.rglob("*"))
    line = rf"M1 → {re.escape(str(out))}, {size / 1000:,.0f} kB, bfloat16, prompt: '.*'"
    assert re.search(rf"^{line}$", said, re.MULTILINE)
    assert size > 10_000
    assert "read again: 21 tensors with" in said
    assert "rounded to bfloat16; config.json and the stop ids [1, 5] are" in said
    config = hf_config.config_from_hf(out)
    rounded = jax.tree.map(
        lambda x: np.asarray(jax.numpy.asarray(x, "bfloat16"), np.float32),
        random_params(1),
    )
    assert_same(weights.load_hf(out, config), rounded)
    made = files.read_json(out / "config.json")
    assert made["max_position_embeddings"] == 300
    generation = files.read_json(out / "generation_config.json")
    assert generation["temperature"] == 0.6 and generation["eos_token_id"] == [1, 5]
    # The export is a model that a run can begin with, which has the same files.
    run = Run(changed(model__init=f"hf:{out}"), tmp_path / "second")
    assert_same(run.params(0), rounded)
    second = [f"--workdir={tmp_path / 'second'}", "--model=M0"]
    second += [f"--out={tmp_path / 'again'}", "--dtype=bfloat16"]
    assert command("export", *second) == 0
    assert contents(tmp_path / "again") == contents(out)


@pytest.fixture
def gguf_file(codec, tmp_path):
    """A GGUF file with the world's tokenizer: model.gguf."""
    path = tmp_path / "model.gguf"
    return path, write_world_model(path, codec.tokenizer)


def test_a_run_from_a_gguf_file(gguf_file, codec, tmp_path):
    path, held = gguf_file
    lengths = ("train__row_length", "search__context_tokens", "judge__context_tokens")
    settings = changed(model__init=f"gguf:{path}", **dict.fromkeys(lengths, 256))
    run = Run(settings, tmp_path / "run")
    assert run.codec.tokenizer.vocab_size == codec.tokenizer.vocab_size
    assert run.model.config.vocab_size == 136
    embedding = np.asarray(run.params(0)["embedding"])
    np.testing.assert_array_equal(embedding, held["token_embd.weight"])
    # The settings read the config from the file until a run has kept it.
    typed = from_config(settings)
    assert model_config(typed, 131) == run.model.config
    out = tmp_path / "out"
    arguments = [f"--workdir={tmp_path / 'run'}", "--model=M0", f"--out={out}"]
    assert command("export", *arguments, "--verify") == 0
    assert files.read_json(out / "config.json")["max_position_embeddings"] == 512
    found = weights.load_hf(out, hf_config.config_from_hf(out))
    digests = checkpoint.array_digests(jax.tree.map(np.asarray, run.params(0)))
    assert checkpoint.array_digests(found) == digests
    path.unlink()
    assert Run(settings, tmp_path / "run").model.config == run.model.config


def test_a_tokenizer_beside_a_gguf_file_or_of_the_settings(gguf_file, codec, tmp_path):
    path, _ = gguf_file
    without = tmp_path / "folder" / "model.gguf"
    without.parent.mkdir()
    meta = sizes("llama", "F32")
    write_gguf(without, "llama", "F32", meta=meta)
    typed = from_config(changed(model__init=f"gguf:{without}"))
    with pytest.raises(ValueError, match="ggml.model is 'none'; .*tokenizer.json besi"):
        data.make_tokenizer(typed, tmp_path / "none")
    named = from_config(
        changed(model__init=f"gguf:{without}", tokenizer=str(codec.tokenizer.directory))
    )
    codec.tokenizer.save(without.parent)
    for number, settings in enumerate((typed, named)):
        folder = tmp_path / f"made_{number}"
        made = data.make_tokenizer(settings, folder)
        assert made.token_bytes == codec.tokenizer.token_bytes
        assert hf_config.config_from_hf(folder).hidden_size == 64
        assert tokenizer.load(folder).stop_ids == (made.eos_id,)


@pytest.mark.parametrize("init", ["hf:", "gguf:", "gguf", "ggml:x", ""])
def test_an_init_that_names_nothing(init, tmp_path):
    with pytest.raises(ValueError, match="expected"):
        Run(changed(model__init=init), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_do_not_sample(pretrained, tmp_path):
    path = pretrained / "model.safetensors"
    params = random_params()
    run = Run(changed(model__init=f"hf:{pretrained}"), tmp_path / "run")
    params["final_norm"]["scale"][3] = np.nan
    words = "1 of the 16 numbers of model.norm.weight are NaN or infinite; expected"
    with pytest.raises(ValueError, match=f"the model: {words}.*learning rate"):
        run.for_sampling(params)
    shutil.rmtree(pretrained)
    export.save_hf(params, SHAPE, pretrained)
    assert path.exists()
    with pytest.raises(ValueError, match=f"{pretrained}: {words}.*Download"):
        run.params(0)
