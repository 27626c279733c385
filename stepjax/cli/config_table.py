"""``stepjax config``: every setting, its value, and what it means.

What a setting means is written once, as a comment in ``stepjax/config.py`` or in the
docstring of a class, and read from there.
"""

import ast
import functools
import pathlib
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepjax import config
from stepjax.run import ranges

_PACKAGE = pathlib.Path(__file__).parents[1]
_SETTING = re.compile(r"    (\w+(?:\.\w+)+) = (?:(\w+) = )?.*?(?:#\s*(.*))?$")


def table(settings: Mapping[str, Any]) -> str:
    """Returns all settings as lines of text.

    Args:
      settings: a config; those that differ from `config.default` are marked with *.
    """
    width = max(60, min(100, shutil.get_terminal_size((88, 24)).columns))
    known, usual, lines = comments(), dict(_leaves(config.default())), []
    order = list(known)
    leaves = sorted(
        _leaves(settings), key=lambda leaf: order.index(_explained(leaf[0], order))
    )
    for name, value in leaves:
        differs = name not in usual or usual[name] != value
        notes = [ranges.words(name)]
        if differs and name in usual:
            notes.append(f"default {usual[name]!r}")
        note = "; ".join(filter(None, notes))
        mark = "*" if differs else " "
        lines.append(f"{mark} {name} = {value!r}" + (f"  [{note}]" if note else ""))
        indent = {"initial_indent": 6 * " ", "subsequent_indent": 6 * " "}
        lines += textwrap.wrap(known.get(_plain(name), ""), width, **indent)
    return "\n".join(lines) + "\n"


def _explained(name: str, known: Sequence[str]) -> str:
    """Returns the setting in config.py that a setting is, or is a part of."""
    while name not in known:
        name = name.rpartition(".")[0] or known[-1]
        name = re.sub(r"\[\d+\]$", "", name)
    return name


def _plain(name: str) -> str:
    """Returns the name under which a part of a phase or optimizer is explained."""
    name = re.sub(r"^(sft\.phases\[\d+\]|prm\.phase|mcts\.phase)\.", "phase.", name)
    return re.sub(r"^(phase|dpo)\.optimizer\.", "optimizer.", name)


def _leaves(values: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) or hasattr(value, "items"):
            yield from _leaves(value, f"{at}{name}.")
        elif value and isinstance(value, tuple) and hasattr(value[0], "items"):
            for number, phase in enumerate(value):
                yield from _leaves(phase, f"{at}{name}[{number}].")
        else:
            yield f"{at}{name}", value


@functools.cache
def comments() -> dict[str, str]:
    """Returns setting → what it means.

    Parts of a phase of SFT are named "phase.epochs" and the like, and those of an
    optimizer "optimizer.learning_rate".
    """
    sections, found, above = {"c": ""}, {}, []
    source = (_PACKAGE / "config.py").read_text(encoding="utf-8")
    for line in source.partition("def default")[2].splitlines():
        setting = _SETTING.match(line)
        if line.strip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        if setting:
            path, alias, beside = setting.groups()
            section, _, rest = path.partition(".")
            name = f"{sections.get(section, section + '.')}{rest}"
            if alias:
                sections[alias] = f"{name}."
            found[name] = " ".join([*above, beside or ""]).strip()
        above = []
    for kind, file, owner in (
        ("phase", "sft.py", "Phase"),
        ("optimizer", "lm/train.py", "OptimizerOptions"),
    ):
        explained = _attributes(_PACKAGE / file, owner)
        found |= {f"{kind}.{name}": text for name, text in explained.items()}
    return found


def _attributes(path: pathlib.Path, owner: str) -> dict[str, str]:
    """Returns what the docstring of a class says of its attributes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = (n for n in tree.body if getattr(n, "name", "") == owner)
    _, _, text = ast.get_docstring(found).partition("Attributes:\n")
    parts = re.split(r"^  (\w+): ", text, flags=re.M)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: " ".join(words.split()) for name, words in pairs}
