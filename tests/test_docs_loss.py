"""Runs every example of docs/loss.md."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "loss.md").read_text("utf-8")
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDED = {"Flax Linen": "flax", "Flax NNX": "flax", "Equinox": "equinox"}
NEEDED["tunix and MaxText"] = "tunix"


def sections():
    """Title → the code of its examples; the first comes before any title."""
    first, *rest = PAGE.split("\n## ")
    found = {"": FENCE.findall(first)}
    for part in rest:
        title, text = part.split("\n", 1)
        found[title] = FENCE.findall(text)
    return found


def run(*titles):
    """Runs the batch of the page, then the examples under these titles."""
    names = {}
    for title in ("", *titles):
        for code in sections()[title]:
            exec(compile(code, f"docs/loss.md, {title}", "exec"), names)
    return names


def test_every_example_is_run_by_a_test():
    own = {title for title, examples in sections().items() if examples}
    tested = {"", "Plain JAX", "The reference ahead of time", "Large vocabularies"}
    assert own == tested | {"The family", *NEEDED}
    assert PAGE.count("```python") == sum(map(len, sections().values()))


@pytest.mark.parametrize("title", ["Plain JAX", *NEEDED])
def test_a_training_step_in_each_library_learns_the_preferences(title):
    module = NEEDED.get(title, "jax")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    losses = run(title)["losses"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.9 * losses[0]
    assert losses == sorted(losses, reverse=True)


def test_the_other_examples_say_what_the_text_says():
    names = run("Plain JAX", "The reference ahead of time", "Large vocabularies")
    assert float(names["metrics"]["rewards/margins"]) == 0
    for name in ("loss", "same_loss"):
        assert float(names[name]) == pytest.approx(math.log(2), abs=1e-6)
    assert np.ptp(names["by_logits"]) > 0.1
    np.testing.assert_allclose(names["by_hidden"], names["by_logits"], rtol=1e-5)
    assert np.abs(names["grads"]["out"]).max() > 1e-3


def test_the_family_takes_the_arguments_of_the_page():
    names = run("The family")
    # (0 - 1 / (2 * 0.1))^2; (2 / 2 - -2 / 1 - 5)^2
    np.testing.assert_allclose(names["with_reference"], [25.0, 4.0], rtol=1e-5)
    assert [np.shape(x) for x in names["without"]] == [(2,), (2,)]
    expected = [-2 * math.log(10), -1.5 * math.log(10)]
    np.testing.assert_allclose(names["shorter"], expected, rtol=1e-5)
