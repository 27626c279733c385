"""Runs every example of docs/loss.md."""

import importlib.util
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "loss.md").read_text("utf-8")
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDED = {"Flax Linen": "flax", "Flax NNX": "flax", "Equinox": "equinox"}
NEEDED["tunix and MaxText"] = "tunix"
JAX_ALONE = ("Plain JAX", "The reference ahead of time", "Large vocabularies")
JAX_ALONE += ("Many devices",)


def sections():
    """Title → the code of its examples; the first comes before any title."""
    first, *rest = PAGE.split("\n## ")
    found = {"": FENCE.findall(first)}
    for part in rest:
        title, text = part.split("\n", 1)
        found[title] = FENCE.findall(text)
    return found


def run(title):
    """Runs the code of one section, and nothing before it, as if it were pasted."""
    names = {}
    for code in sections()[title]:
        exec(compile(code, f"docs/loss.md, {title}", "exec"), names)
    return names


def test_every_example_is_run_by_a_test_and_says_what_to_install():
    own = {title for title, examples in sections().items() if examples}
    assert own == {"", *JAX_ALONE, "The family", *NEEDED}
    assert PAGE.count("```python") == sum(map(len, sections().values()))
    for title in own - {""}:
        text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
        assert "Needs\n`pip install" in text or "Needs `pip install" in text, title


def test_every_section_uses_the_batch_of_the_top():
    form = re.compile(r"^batch = \{  # [^\n]*\n(.*?)^\}", re.MULTILINE | re.DOTALL)
    assert len(set(form.findall(PAGE))) == 1 and len(form.findall(PAGE)) == 8


@pytest.mark.parametrize("title", ["Plain JAX", *NEEDED])
def test_a_training_step_in_each_library_learns_the_preferences(title):
    module = NEEDED.get(title, "jax")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    losses = run(title)["losses"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.9 * losses[0]
    assert losses == sorted(losses, reverse=True)


def test_a_reference_ahead_of_time_gives_the_loss_of_the_reference_itself():
    names = run("The reference ahead of time")
    assert float(names["metrics"]["rewards/margins"]) == 0
    for name in ("loss", "same_loss"):
        assert float(names[name]) == pytest.approx(math.log(2), abs=1e-6)
    assert np.abs(names["grads"]["out"]).max() > 1e-3


def test_hidden_states_give_the_numbers_of_logits():
    names = run("Large vocabularies")
    assert np.ptp(names["by_logits"]) > 0.1
    np.testing.assert_allclose(names["by_hidden"], names["by_logits"], rtol=1e-5)


def test_a_vocabulary_over_all_devices_gives_the_loss_of_one():
    names = run("Many devices")
    assert names["mesh"].axis_types == (jax.sharding.AxisType.Explicit,) * 2
    gradient, whole = names["gradient"], names["unembedding"].shape
    assert names["count"] == 8 and whole == (80, 16)
    assert {shard.data.shape for shard in gradient.addressable_shards} == {(10, 16)}
    inputs = (names[n] for n in ("unembedding", "hidden", "tokens", "step_mask"))
    expected = names["negative_logp"](*map(np.asarray, inputs))
    assert float(names["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert np.abs(gradient).max() > 1e-3


def test_the_family_takes_the_arguments_of_the_page():
    names = run("The family")
    # (0 - 1 / (2 * 0.1))^2; (2 / 2 - -2 / 1 - 5)^2
    np.testing.assert_allclose(names["with_reference"], [25.0, 4.0], rtol=1e-5)
    assert [np.shape(x) for x in names["without"]] == [(2,), (2,)]
    expected = [-2 * math.log(10), -1.5 * math.log(10)]
    np.testing.assert_allclose(names["shorter"], expected, rtol=1e-5)
