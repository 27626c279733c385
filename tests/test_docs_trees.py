"""Runs the code of docs/trees.md and checks what it computes."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "trees.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page():
    """The names of each block of code; the third goes on after the second."""
    first, second, third = FENCE.findall(PAGE.read_text("utf-8"))
    names = [{}, {}]
    for place, code in ((0, first), (1, second), (1, third)):
        exec(compile(code, "docs/trees.md", "exec"), names[place])
    return names


def test_the_first_block_counts_what_is_shared(page):
    names = page[0]
    # 5 6 7, then 20 with 21 and 22 23 behind it, and 24; 8 9 20.
    assert (names["plain"], names["in_trees"]) == (18, 3 + 4 + 1 + 3)
    assert names["rows"].segment.shape == names["rows"].weight.shape == (1, 7)


def test_the_loss_of_the_page_learns_and_its_numbers_are_those_of_plain_rows(page):
    names = page[1]
    rows, ids, scored = names["rows"], names["ids"], names["scored"]
    assert rows.tokens.shape == (1, 16) and len(ids) == 5
    values = names["values"]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.01
    lm, model = names["lm"], names["model"]
    first = lm.init(model, jax.random.key(0))
    for number, (tokens, mask) in enumerate(zip(ids, scored, strict=True)):
        row = jnp.asarray([tokens])
        ends = jnp.full_like(row, len(tokens))
        position = jnp.arange(len(tokens))[None]
        hidden = model.apply({"params": first}, row, position, ends)[0, :-1]
        logps = jax.nn.log_softmax(hidden @ lm.unembedding(first).T)
        logps = logps[jnp.arange(len(tokens) - 1), row[0, 1:]]
        mine = names["old"][(rows.segment == number) & (rows.weight > 0)]
        expected = logps[np.asarray(mask[1:], bool)]
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)
    # 5 rows of 7 tokens against one of 16; the vocabulary's products are the same.
    assert 1.5 < names["fewer"] < 35 / 16


def test_the_quotient_of_the_page_is_that_of_its_formula():
    text = PAGE.read_text("utf-8")
    assert "2.5\nfor p = 800, a = 200 and G = 4" in text
    p, a, g = 800, 200, 4
    assert g * (p + a) / (p + g * a) == 2.5
