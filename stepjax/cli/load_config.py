"""Reads a config file, and says in one sentence what is wrong with it."""

import importlib.machinery
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
from absl import flags

from stepjax import config, own_files

_EXPECTED = (
    "a file whose get_config() changes and returns the settings that "
    "stepjax.config.default() gives"
)
_FOUND_BY_US = pathlib.Path(__file__).with_name("config_files.py")


class Parser(flags.ArgumentParser):
    """Turns the value of --config, "FILE" or "FILE:TEXT", into settings."""

    name = "config"  # config_flags asks for it

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        """Returns the settings, locked.

        Raises:
          flags.Error: for a file that gives none; absl would put other words in front
            of a ValueError.
        """
        return load(argument)

    def flag_type(self) -> str:
        """Returns what absl's help calls this."""
        return "config file"


def load(named: str) -> ml_collections.ConfigDict:
    """Returns the settings of a config file, locked and with every name and type right.

    Args:
      named: "FILE", or "FILE:TEXT" for a get_config that takes a text.

    Raises:
      flags.Error: with the file, the line, the reason and what was expected.
    """
    path, colon, text = named, "", ""
    if not pathlib.Path(named).is_file():
        path, colon, text = named.partition(":")
    function = _function(path)
    words = (text,) if colon else ()
    line = _line(function, path)
    try:
        inspect.signature(function).bind(*words)
    except TypeError as error:
        if colon:
            reason = "get_config() of this file takes no text"
            raise flags.Error(
                f"--config={named}: {reason}; expected --config={path}."
            ) from error
        raise flags.Error(
            f"{path}{line}: get_config() of this file needs a text; expected "
            f"--config={path}:TEXT."
        ) from error
    try:
        made = function(*words)
    except (Exception, SystemExit) as error:
        if pathlib.Path(path) == _FOUND_BY_US:  # the settings of a run directory
            raise flags.Error(str(error)) from error
        raise flags.Error(_words(error, path)) from error
    wrong = list(_wrong(made))
    if wrong:
        shown = "; ".join(wrong[:5]) + (
            f"; and {len(wrong) - 5} more" * (len(wrong) > 5)
        )
        raise flags.Error(f"{path}{line}: get_config() returns {shown}.")
    return made.lock()


def _function(path: str) -> Callable:
    """Returns get_config of a file."""
    loader = importlib.machinery.SourceFileLoader("config_config", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # beside a person's file
    sys.modules[loader.name] = module  # dataclasses and pickle look there
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise flags.Error(_words(error, path)) from error
    finally:
        sys.dont_write_bytecode = before
    if not hasattr(module, "get_config"):
        raise flags.Error(f"{path} has no function get_config(); expected {_EXPECTED}.")
    if not callable(module.get_config):
        found = type(module.get_config).__name__
        raise flags.Error(
            f"{path}: get_config is {own_files.kind(found)} and no function; expected "
            f"{_EXPECTED}."
        )
    return module.get_config


def _line(function: Callable, path: str) -> str:
    """Returns ", line N" for a function that the file itself defines."""
    code = getattr(function, "__code__", None)
    return f", line {code.co_firstlineno}" if code and code.co_filename == path else ""


def _words(error: BaseException, path: str) -> str:
    for made in (config.phase, config.optimizer):
        unknown = f"{made.__name__}() got an unexpected keyword argument "
        if isinstance(error, TypeError) and str(error).startswith(unknown):
            known = ", ".join(inspect.signature(made).parameters)
            return own_files.sentence(error, path, f"only {known}")
    return own_files.sentence(error, path, _EXPECTED)


def _wrong(made: Any) -> Iterator[str]:
    """Yields what is wrong with the names and types of what get_config returned."""
    if not isinstance(made, ml_collections.ConfigDict):
        what = "None" if made is None else own_files.kind(type(made).__name__)
        hint = " (is `return c` missing?)" if made is None else ""
        yield f"{what}{hint}; expected what stepjax.config.default() gives, changed"
        return
    yield from _differences(made, config.default(), "")


def _differences(made: Any, usual: Any, at: str) -> Iterator[str]:
    lacking = [f"{at}{name}" for name in usual if name not in made]
    if lacking:
        few = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        wanted = "all that stepjax.config.default() gives"
        yield f"settings without {few}; expected {wanted}"
    for name, value in made.items():
        if name not in usual:
            hint = own_files.did_you_mean(str(name), usual, at)
            yield f"an unknown setting {at}{name}; expected only known ones{hint}"
        elif isinstance(usual[name], ml_collections.ConfigDict):
            yield from _section(value, usual[name], f"{at}{name}")
        elif not _fits(value, usual[name]):
            wanted = own_files.kind(type(usual[name]).__name__)
            yield f"{at}{name}={value!r}; expected {wanted}"
        elif f"{at}{name}" == "sft.phases":
            for number, phase in enumerate(value):
                yield from _section(phase, config.phase(), f"sft.phases[{number}]")


def _section(value: Any, usual: ml_collections.ConfigDict, at: str) -> Iterator[str]:
    if isinstance(value, ml_collections.ConfigDict):
        yield from _differences(value, usual, f"{at}.")
        return
    phase = at.startswith("sft.phases[") and "." not in at.partition("]")[2]
    wanted = "what stepjax.config.phase() gives" if phase else "a ConfigDict"
    yield f"{at}={value!r}; expected {wanted}"


def _fits(value: Any, usual: Any) -> bool:
    """Whether a value has the type of the usual one; whole numbers are numbers."""
    if isinstance(usual, bool) or isinstance(value, bool):
        return isinstance(usual, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(usual, float) else type(usual))
