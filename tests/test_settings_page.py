"""docs/settings.md: what its script makes of config.py, with every setting."""

import pathlib
import re
import runpy

import pytest

from stepjax import config

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "settings.md").read_text("utf-8")
ROW = re.compile(r"^\| `([\w.]+)` \| (.+?) \| (.*?) ?\| (.*) \|$", re.MULTILINE)


def names(values, at=""):
    """Yields the names of all settings, without the parts of phases and optimizers."""
    for name, value in values.items():
        inside = value.keys() if hasattr(value, "keys") else ()
        if inside and "learning_rate" not in inside and "batch_size" not in inside:
            yield from names(value, f"{at}{name}.")
        elif name == "dpo":
            yield from names(value, "dpo.")
        else:
            yield f"{at}{name}"


def test_the_page_is_what_its_script_makes():
    made = runpy.run_path(str(DOCS / "make_settings.py"))["page"]()
    assert made == PAGE, "config.py has changed: run python docs/make_settings.py"


def test_every_setting_is_on_the_page_once_and_has_a_meaning():
    parts = [*config.phase().keys(), *config.optimizer(1.0).keys()]
    expected = [*names(config.default()), *parts]
    rows = ROW.findall(PAGE)
    assert sorted(row[0] for row in rows) == sorted(expected)
    assert len(rows) > 130
    assert not [name for name, _, _, meaning in rows if not meaning.strip()]


@pytest.mark.parametrize(
    ("name", "default", "may_be"),
    [
        ("search.width", "`6`", "2 to 1,000"),
        ("judge.value", "`'hard'`", "`'hard'`, `'probability'`"),
        ("dpo.label_smoothing", "`0.0`", "0 to below 0.5"),
        ("dpo.optimizer", "an optimizer, `learning_rate=5e-07`", ""),
        ("batch_size", "`32`", "1 to 1,000,000"),
        ("model.tie_embeddings", "`False`", ""),
    ],
)
def test_defaults_and_ranges_are_those_of_the_package(name, default, may_be):
    (row,) = (row for row in ROW.findall(PAGE) if row[0] == name)
    assert row[1:3] == (default, may_be)
