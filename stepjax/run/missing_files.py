"""Files that a new run reads and that are not there, found before anything heavy."""

import os
import re
from collections.abc import Mapping
from typing import Any

from stepjax.lm import addresses, ordinary
from stepjax.run import paths
from stepjax.run.judge_rules import is_foreign

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def missing_files(config: Mapping[str, Any]) -> list[str]:
    """Returns a sentence about every file that a new run reads and that is not there.

    Files of servers and rows of tensorflow-datasets are looked for later.

    Args:
      config: all settings, see `stepjax.config.default`. What `ranges.wrong` says of
        them is not repeated.
    """
    data, found = config.data, _of_model("model.init", config.model.init)
    if data.make_eft and config.teacher.backend == "local":
        found += _of_model("teacher.model", config.teacher.model)

    def look(name: str, path: str, what: str, needed: bool = True) -> None:
        address = "" if name == "tokenizer" else _address(name, path)
        later = path.startswith("tfds:") or addresses.is_address(path)
        if not path and needed:
            found.append(f"{name} is empty; expected {what}.")
        elif address:
            found.append(address)
        elif path and not later and not os.path.exists(path):
            found.append(f"{name}={path!r}: no such file; expected {what}.")
        elif path and (kind := ordinary.kind(path)):
            found.append(f"{name}={path!r}: this is {kind}; expected {what}.")

    look("tokenizer", config.tokenizer, "a folder or tokenizer.json", False)
    if data.make_eft and config.teacher.backend == "replay":
        look("teacher.file", config.teacher.file, "a file of a teacher's answers")
    if data.world == "word_problems":
        look("data.equations", data.equations, "a file of word problems")
        look("data.test", data.test, "a file of test problems")
    elif data.world == "":
        look("data.ift", data.ift, "a file of solutions (or set data.world)")
        look("data.question_file", data.question_file, "a file of questions")
        look("data.test", data.test, "a file of test problems")
        if not data.make_eft:
            needed = not is_foreign(config.judge.by)  # which learns nothing here
            look("data.eft", data.eft, "a file of judgments", needed)
        elif config.prm.labels not in ("gold", "rollouts"):
            look("prm.labels", config.prm.labels, "a file of step labels")
        if data.make_eft:
            asked = config.mcts.question_file
            look("mcts.question_file", asked, "a file of questions", False)
        if config.tokenizer == "" and config.model.init == "random":
            found.append(
                "tokenizer is empty; expected a folder or a tokenizer.json file (or "
                "model.init=hf:DIR or gguf:FILE, or a data.world)."
            )
    return found


def _of_model(name: str, model: str) -> list[str]:
    """Returns what is wrong with the path of a setting's model, if it names one."""
    kind, _, source = model.partition(":")
    if kind not in ("hf", "gguf") or not source or addresses.is_address(source):
        return []
    if kind == "gguf":
        gone = f"{name}={model!r}: no such file; expected 'gguf:' and a file."
        return [] if os.path.exists(source) else [gone]
    if os.path.isdir(source):
        return []
    expected = "expected 'hf:' and a folder on this computer"
    if os.path.exists(source):
        remedy = "For a GGUF file, set gguf:FILE."
        return [f"{name}={model!r}: this is a file; {expected}. {remedy}"]
    hub = source if _HUB_NAME.fullmatch(source) else "NAME"
    return [
        f"{name}={model!r}: no such folder; {expected}. `hf download {hub} "
        "--local-dir DIR` fetches a model of the hub; then set hf:DIR."
    ]


def _address(name: str, path: str) -> str:
    return paths.elsewhere(name, path, "a file", "Copy it here first.")
