"""Plans for one GPU: arithmetic, in seconds, without a GPU or a compiler."""

import jax
import pytest
from runs import command
from test_plan import CONFIGS, tiny

from stepjax.cli import arguments
from stepjax.planning import card
from stepjax.settings import from_config


def needs(stage, **changes):
    return {
        program.name: found
        for program, found in card.needed(from_config(tiny(**changes)), stage)
    }


ONE = {"mesh__data": 1, "mesh__fsdp": 1, "mesh__tensor": 1, "dpo__reference": "live"}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    device = jax.devices()[:1]
    monkeypatch.setattr(card.jax, "devices", lambda: device)


def test_the_memory_of_a_card_is_read_and_other_words_are_refused():
    assert (
        arguments.card_bytes("80GB")
        == arguments.card_bytes("80")
        == arguments.card_bytes("80 gib")
        == 80 * 2**30
    )
    for name in ("80TB", "-1GB", "a100", "0GB"):
        with pytest.raises(
            ValueError, match="expected the memory of one card, such as"
        ):
            arguments.card_bytes(name)


def test_parameters_and_moments_are_counted_exactly():
    layer = 256 * (4 + 2 + 2 + 4) * 128 + 3 * 256 * 512 + 2 * 256 + (4 + 2 + 2) * 128
    count = 2 * layer + 2 * 512 * 256 + 256
    found = needs("sft", **ONE)["sft"]
    assert found["parameters"] == 4 * count
    # The counts of updates that the optimizer and its schedule keep are 4 bytes each.
    assert 0 < found["moments"] - 8 * count <= 16
    half = needs("sft", **ONE, train__optimizer_dtype="bfloat16")["sft"]
    assert half["moments"] == found["moments"] - 2 * count
    live = needs("dpo", **ONE)["dpo"]
    assert live["parameters"] == (4 + 2) * count  # the reference is in bfloat16


def test_caches_of_keys_and_values_are_counted_exactly():
    found = needs("search", **ONE)
    each = (
        2 * 2 * 4 * 2 * 256 * 128 * 2
    )  # key, value; layers, slots, heads, C, D; bytes
    for name in ("search: prefill", "search: candidates", "judge: prefill"):
        assert found[name]["caches"] == 2 * each  # solving and judging side by side
    assert found["search: candidates"]["logits"] >= 0


def test_what_is_lowered_makes_a_program_smaller():
    whole = needs("sft", **ONE, model__remat="none")["sft"]
    full = needs("sft", **ONE, model__remat="full")["sft"]
    assert full["activations"] < 0.7 * whole["activations"]
    parts = needs("sft", **ONE, train__micro_batches=8)["sft"]
    assert parts["activations"] < full["activations"]


def test_a_plan_says_that_it_is_arithmetic_and_what_to_lower():
    settings = from_config(tiny(**ONE, model__remat="none", model__dtype="float32"))
    memory = 30 * 2**20
    text = card.plan(settings, memory, ("dpo",))
    assert "Arithmetic, not compiled" in text and "NO" in text
    assert "dpo does not fit" in text and "model.remat='full'" in text
    order = [text.index(word) for word in ("bfloat16", "remat", "precomputed")]
    assert order == sorted(order)
    text = card.plan(settings, arguments.card_bytes("80GB"), ("dpo",))
    assert "does not fit" not in text and " yes " in text and "60.00 GiB" in text


def test_the_command_takes_a_slice_or_a_card(capsys):
    config = f"--config={CONFIGS / 'qwen2_5_math_1_5b_gpu.py'}"
    assert command("plan", config, "--gpu=80GB", "--topology=v5e:1x1") == 2
    assert "--topology and --gpu are given together" in capsys.readouterr().err
    assert command("plan", config, "--gpu=eighty") == 2
    assert "--gpu='eighty'; expected the memory" in capsys.readouterr().err


def test_the_plan_of_a_shipped_config_is_what_its_file_says(capsys):
    config = f"--config={CONFIGS / 'smollm2_gpu.py'}"
    assert command("plan", config, "--gpu=24GB", "--stage=sft") == 0
    out = capsys.readouterr().out
    assert "0.13 billion parameters" in out and " 2.44 " in out
    text = (CONFIGS / "smollm2_gpu.py").read_text("utf-8")
    assert "SFT 2.4" in text
