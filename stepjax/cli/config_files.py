"""Where settings come from: a file, the name of a shipped file, or a run directory."""

import json
import pathlib
import re
from collections.abc import Sequence

import ml_collections

from stepjax import config

_PACKAGE = pathlib.Path(__file__).parents[1]
# Of an installed package, and of a checkout.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_PHASES = re.compile(r"--config\.(sft\.phases)(?!\[\d+\]\.)")


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """Returns the settings of a run directory; ``--config=THIS_FILE:DIR`` does.

    Raises:
      ValueError: when its config.json cannot be read, or is of another version.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        return config.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as the settings of a run ({error}); expected what "
            "stepjax wrote. Put it back, or give --config=FILE."
        ) from error


def shipped() -> dict[str, pathlib.Path]:
    """Returns name → path of the config files that come with stepjax."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    paths = sorted(folder.glob("*.py")) if folder else []
    return {path.stem: path for path in paths}


def arguments(words: Sequence[str]) -> list[str]:
    """Returns the words of a command with the whole path of its settings at the front.

    Args:
      words: options, as the person has typed them.

    Raises:
      ValueError: when there is no such file, or settings are changed and none named.
    """
    _refuse_phases(words)
    rest, named = _taken(words, "config")
    if named is not None:
        return [f"--config={_path(named)}", *rest]
    workdir = _taken(words, "workdir")[1]
    if workdir and (pathlib.Path(workdir) / "config.json").exists():
        return [f"--config={__file__}:{workdir}", *rest]
    changed = [word for word in words if word.startswith("--config.")]
    if changed:
        raise ValueError(
            f"{changed[0]} changes one setting, and nothing gives the other ones; "
            "expected --config=FILE, or the --workdir of a run with its config.json."
        )
    return rest


def _taken(words: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """Returns the words without an option, and the option's last value or None."""
    rest, value, at = [], None, 0
    while at < len(words):
        for dashes in ("--", "-"):
            if words[at].startswith(f"{dashes}{name}="):
                value = words[at].partition("=")[2]
                break
            if words[at] == f"{dashes}{name}" and at + 1 < len(words):
                at += 1
                value = words[at]
                break
        else:
            rest.append(words[at])
        at += 1
    return rest, value


def _path(named: str) -> str:
    """Returns the path of a config file, with what is handed to it after a colon."""
    if pathlib.Path(named).is_file():
        return named
    name, colon, text = named.partition(":")
    known = shipped()
    if pathlib.Path(name).is_file():
        path = pathlib.Path(name)
    elif name.removesuffix(".py") in known:
        path = known[name.removesuffix(".py")]
    else:
        raise ValueError(
            f"--config={named}: no such file (looked in {pathlib.Path.cwd()}); "
            f"expected a Python file, or one of {', '.join(known)}."
        )
    return f"{path}{colon}{text}"


def _refuse_phases(words: Sequence[str]) -> None:
    for word in words:
        if _PHASES.match(word):
            raise ValueError(
                f"{word}: sft.phases is a list; expected one part of one phase, such "
                "as --config.sft.phases[0].steps=100 (the first phase). Write a config "
                "file to change their number."
            )
