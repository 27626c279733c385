"""Where settings come from: a file, the name of a shipped file, or a run directory."""

import os
import pathlib
import re
from collections.abc import Sequence

import ml_collections

from stepjax import config, own_files
from stepjax.cli import help
from stepjax.run import config_json, paths

_PACKAGE = pathlib.Path(__file__).parents[1]
# Of an installed package, and of a checkout.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_OPTION = re.compile(r"--?([A-Za-z][^=\s]*)(?:=(.*))?\Z", re.S)
# "wrong" and "nowrong" → "wrong", of options that have no value.
_SWITCHES = {
    f"{no}{name}": name
    for name, (value, _) in help.OPTIONS.items()
    for no in ("", "no")
    if value is None
}
_LISTS = ("benchmark", "seeds", "arms", "against")  # with commas in values
# Options that name files → what a path in them begins after.
_PATHS = {"config": "[,:]", "benchmark": ",", "workdir": "(?!)", "out": "(?!)"}
_FILES = "config.eval.benchmarks"  # a setting that is a tuple of names of files
_PHASES = re.compile(r"--config\.(sft\.phases)(?!\[\d+\]\.)")


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """Returns the settings of a run directory; ``--config=THIS_FILE:DIR`` does.

    Raises:
      ValueError: when its config.json cannot be read, or is of another version.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        return config.from_dict(config_json.read(path.parent))
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
      ValueError: when there is no such file, when settings are changed and none named,
        or when an option is given twice.
    """
    _refuse_phases(words)
    _refuse_repeats(words)
    words = _quoted(_expanded(words))
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


def _expanded(words: Sequence[str]) -> list[str]:
    """Returns the words with the home folder in the place of ~ in every path."""
    result: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if result and result[-1].lstrip("-") in _PATHS and word[:1] != "-":
            name, equals, value = result[-1], "", word
        after = _PATHS.get(name.lstrip("-"))
        if after and value:
            home = re.compile(rf"(?:^|(?<={after}))~[^/,:]*")
            value = home.sub(lambda found: os.path.expanduser(found[0]), value)
            word = f"{name}={value}" if equals else value
        result.append(word)
    return result


def _quoted(words: Sequence[str]) -> list[str]:
    """Returns the words with names of files as one text, which later parts at commas.

    A setting that is a tuple is read as Python, and "/a,/b" or "a b" is none.
    """
    result: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if result and result[-1].lstrip("-") == _FILES and word[:1] != "-":
            name, equals, value = result[-1], "", word
        if name.lstrip("-") == _FILES and value and value[0] not in "([\"'":
            word = f"{name}={value!r}" if equals else repr(value)
        result.append(word)
    return result


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
        raise ValueError(_no_file(named, name))
    return f"{path}{colon}{text}"


def _no_file(named: str, name: str) -> str:
    """Returns a sentence about a --config that names no file of settings."""
    known = shipped()
    expected = f"expected a Python file, or one of {', '.join(known)}"
    if address := paths.elsewhere("--config", named, "a file", "Copy it here first."):
        return address
    for folder in (named, name):
        if (pathlib.Path(folder) / "data" / "manifest.json").is_file():
            return (
                f"--config={named}: this is a run directory; {expected}. Its own "
                f"settings are taken with --workdir={folder} and no --config."
            )
        if folder and pathlib.Path(folder).is_dir():
            return f"--config={named}: this is a folder; {expected}."
    hint = own_files.did_you_mean(name.removesuffix(".py"), known)
    where = f"no such file (looked in {pathlib.Path.cwd()})"
    return f"--config={named}: {where}; {expected}{hint}."


def _refuse_repeats(words: Sequence[str]) -> None:
    """Raises ValueError for an option that is given twice, with both values."""
    given: dict[str, str] = {}
    for at, word in enumerate(words):
        option = _OPTION.match(word)
        if not option:
            continue
        name, value = option.groups()
        name = _SWITCHES.get(name, name)
        after = words[at + 1] if at + 1 < len(words) else ""
        if (
            value is None
            and name not in _SWITCHES.values()
            and not _OPTION.match(after)
        ):
            word = f"{word} {after}".strip()
        if name in given:
            remedy = "Leave one of them out."
            if name in _LISTS:
                remedy = f"Write both in one, with a comma: --{name}=A,B."
            raise ValueError(
                f"{given[name]} and {word} are both given; expected --{name} once. "
                f"{remedy}"
            )
        given[name] = word


def _refuse_phases(words: Sequence[str]) -> None:
    for word in words:
        if _PHASES.match(word):
            raise ValueError(
                f"{word}: sft.phases is a list; expected one part of one phase, such "
                "as --config.sft.phases[0].steps=100 (the first phase). Write a config "
                "file to change their number."
            )
