"""Finds the function that `judge.by` or `search.propose_by` names, and checks it.

What such a function gets and returns is in `stepjax.own_functions`. Only the standard
library is imported here, so that a wrong name costs a fraction of a second.
"""

import importlib
import inspect
import os
import reprlib
import sys
from collections.abc import Callable
from typing import Any

from stepjax import own_files


def named(setting: str) -> bool:
    """Whether a setting names a function of one's own."""
    return ":" in setting


def load(name: str, value: str) -> Callable:
    """Returns the function that a setting names. It is not called.

    Args:
      name: of the setting, for messages.
      value: "module:function".

    Raises:
      ValueError: when there is no such module, when its import fails, when it has no
        such function, or when the function cannot be called with one list.
    """
    module, _, function = value.partition(":")
    shown = f"{name}={value!r}"
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise ValueError(
            f"{shown}: these are no names of a module and of a function; expected "
            "'module:function', such as 'own_code:score'."
        )
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ValueError(
                f"{shown}: there is no module {module!r} in {here} or on Python's "
                "path; expected 'module:function', without '.py'. Start the command in "
                "the module's folder, or add that folder to PYTHONPATH."
            ) from error
        path = os.path.join(here, *module.split(".")) + ".py"
        said = own_files.sentence(error, path, "a module that can be imported")
        raise ValueError(f"{shown}: {said}") from error
    finally:
        sys.path.remove(here)
    made = getattr(found, function, None)
    if not callable(made):
        reason = f"no function {function!r}"
        if hasattr(found, function):
            kind = own_files.kind(type(made).__name__)
            shown_value = reprlib.repr(made)
            reason = f"{function!r}, but it is {kind} ({shown_value}), no function"
        raise ValueError(
            f"{shown}: the module has {reason}; expected 'module:function'."
        )
    fault = _fault(made)
    if fault:
        raise ValueError(
            f"{shown}: {fault}; expected a function that is called with one argument, "
            "the list of problems in flight, and returns a list with one list per "
            "problem."
        )
    return made


def _fault(made: Any) -> str:
    """Returns why something cannot be called with a list and return one; "" if it can.

    Whoever calls it finds this out only after training, so it is looked for early.
    """
    if inspect.isclass(made):
        return "this is a class, and calling it makes an object"
    for what in (made, getattr(made, "__call__", made)):  # noqa: B004
        if inspect.iscoroutinefunction(what) or inspect.isasyncgenfunction(what):
            return "this is an async function, whose result must be awaited"
        if inspect.isgeneratorfunction(what):
            return "this is a generator, because it has a yield"
    try:
        signature = inspect.signature(made)
    except (ValueError, TypeError):  # some functions written in C have none
        return ""
    try:
        signature.bind([])
    except TypeError as error:
        return f"its arguments are {signature} ({error})"
    return ""


def wrong(judge_by: str, propose_by: str) -> list[str]:
    """Loads the functions that the settings name; returns what is wrong, in sentences.

    Args:
      judge_by: setting `judge.by`.
      propose_by: setting `search.propose_by`.
    """
    found = []
    for name, value in (("judge.by", judge_by), ("search.propose_by", propose_by)):
        try:
            if named(value):
                load(name, value)
        except ValueError as error:
            found.append(str(error))
    return found
