"""Settings that change on an existing run: which finished stages they invalidate.

The stages of a run come one after the other, and each depends on some settings and on
the stages before it. A change of settings that no finished stage depends on is taken
over: more iterations, other devices, how much is logged, how a model is evaluated. A
change that a finished stage depends on is refused, unless the person who runs it allows
with ``--redo=STAGE`` that this stage and all that come after it are deleted. They are
only set aside until the new settings have passed all checks.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepjax.lm import files
from stepjax.own_files import did_you_mean
from stepjax.run import config_json
from stepjax.run.judge_rules import is_foreign

_TRAIN = ("train.row_length", "train.optimizer_dtype")
# Stage, in the order of a run → settings, or sections of them, that decide its result.
# What a stage takes over from an earlier one is not repeated.
DEPENDS: dict[str, tuple[str, ...]] = {
    "prepare": (
        *("seed", "tokenizer", "prompts.step", "model.init", "data", "judge.kind"),
        *("prm.labels", "prm.labels_format", "prm.labels_count", "prm.heldout_count"),
        *("mcts.questions", "mcts.question_file", "mcts.question_format"),
    ),
    "policy": ("model", "lora", "prompts", "mcts.phase", *_TRAIN),
    "rollouts": ("rollouts", "search.context_tokens", "search.weights"),
    "prm": ("model", "lora", "prompts", "prm", *_TRAIN),
    "mcts": (
        *("mcts", "search.max_step_tokens", "search.context_tokens"),
        "search.weights",
    ),
    "eft": ("teacher",),
    "sft": ("model", "lora", "prompts", "judge.tie", "sft", "srlm", *_TRAIN),
    "search": ("search", "judge", "srlm", "pairs"),
    "dpo": ("dpo", "improve_by", "judge.keep", *_TRAIN),
}
# Mode of evaluation → settings that decide its result.
_MODEL, _GRADED = ("model.dtype", "prompts"), ("eval.grading",)
MEASURED = {
    "greedy": (
        *(*_MODEL, *_GRADED, "eval.max_tokens", "search.context_tokens"),
        "search.weights",
    ),
    "judge": (
        *(*_MODEL, "seed", "judge.kind", "judge.mode", "judge.score", "srlm"),
        *("judge.value", "judge.votes", "judge.tie"),
        *("judge.temperature", "judge.top_p"),
        *("judge.max_tokens", "judge.context_tokens", "search.weights"),
    ),
    "search": (
        *(*_MODEL, *_GRADED, "seed", "search", "judge", "srlm"),
        "eval.search_count",
    ),
    "training": ("model.dtype", "seed", "train.row_length"),
    "solve": (
        *(*_MODEL, *_GRADED, "seed", "search", "judge", "srlm"),
        *("eval.search_count", "eval.max_tokens"),
    ),
}
# How a stage is computed, and not what comes out of it.
_FREE = (
    *("mesh", "search.slots", "search.tensor", "judge.rows", "mcts.remember_tokens"),
    *("train.checkpoint_every", "train.log_every", "train.micro_batches"),
    "train.on_nonfinite",
    *("model.remat", "model.attention", "dpo.reference", "iterations"),
    *("compile_cache", "wandb"),
    *("teacher.url", "teacher.key_variable", "teacher.concurrency", "teacher.timeout"),
    *("teacher.requests_per_minute", "teacher.token_budget", "teacher.retries"),
)


# Settings of the judge that decide how models are trained, and not how they judge.
_JUDGE_TRAINING = ("judge.keep",)
_ASIDE = "replaced"  # folder of a run directory with what --redo takes away
_RECORD = "record.json"


class Made(NamedTuple):
    """A stage that has left files in the run directory, finished or not.

    Attributes:
      stage: a key of `DEPENDS`.
      number: of the model that it makes or searches with; 0 before M1.
      paths: its files and folders that are there, the manifest first.
    """

    stage: str
    number: int
    paths: tuple[pathlib.Path, ...]

    def __str__(self) -> str:
        if self.stage == "prepare":
            return "the data"
        if not self.number:
            return f"init/{self.stage}"
        return f"M{self.number}{' search' if self.stage == 'search' else ''}"


def places(folder: pathlib.Path) -> list[tuple[str, int, tuple[str, ...]]]:
    """Returns the stages that a run can have, in their order.

    Returns:
      (a key of `DEPENDS`, the number of the model, patterns of its files and folders,
      the manifest first) for each.
    """
    before = {
        "prepare": ("data/manifest.json", "data", "tokenizer"),
        "policy": ("init/policy/manifest.json", "init/policy"),
        "rollouts": ("init/values.json", "init/values*"),
        "prm": ("init/prm/manifest.json", "init/prm"),
        "mcts": ("init/mcts.json", "init/trees*", "init/pairs.jsonl"),
        "eft": ("init/eft.json", "init/dropped.jsonl"),
    }
    model = ("manifest.json", "params", "train", "*.damaged*")
    searched = ("search.json", "search.jsonl", "search.partial*", "pairs.jsonl")
    searched = (*searched, "judgments.jsonl")
    found = [(name, 0, patterns) for name, patterns in before.items()]
    numbers = [int(p.name[1:]) for p in folder.glob("M*") if p.name[1:].isdecimal()]
    for number in range(1, max(numbers, default=0) + 1):
        own = tuple(f"M{number}/{name}" for name in model)
        found.append(("sft" if number == 1 else "dpo", number, own))
        own = tuple(f"M{number}/{name}" for name in searched)
        found.append(("search", number, own))
    return found


def made(folder: pathlib.Path) -> list[Made]:
    """Returns the stages that a run has finished or begun, in their order."""
    found = [
        Made(
            name,
            number,
            tuple(dict.fromkeys(p for text in own for p in sorted(folder.glob(text)))),
        )
        for name, number, own in places(folder)
    ]
    return [stage for stage in found if stage.paths]


def filled(theirs: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run, with the default of each that it does not have.

    A run that was begun with an earlier version lacks settings that were added later.

    Args:
      theirs: settings of the run, as JSON values.
      default: all settings, as JSON values.
    """
    missing = {key: value for key, value in default.items() if key not in theirs}
    inside = {
        key: filled(value, default[key])
        for key, value in theirs.items()
        if isinstance(value, Mapping) and isinstance(default.get(key), Mapping)
    }
    return {**theirs, **inside, **missing}


def changes(theirs: Any, mine: Any, at: str = "") -> dict[str, str]:
    """Returns the settings that differ: name → "was ..., now ...".

    Args:
      theirs: settings of the run, as JSON values.
      mine: settings of the command, as JSON values.
      at: name of the section.
    """
    if isinstance(theirs, dict) and isinstance(mine, dict):
        result = {}
        for key in sorted(theirs.keys() | mine.keys()):
            name = f"{at}.{key}".strip(".")
            result |= changes(theirs.get(key), mine.get(key), name)
        return result
    return {} if theirs == mine else {at: f"was {theirs!r}, now {mine!r}"}


def stale(
    stages: Sequence[Made], theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> tuple[list[Made], list[str]]:
    """Returns what a change of settings invalidates.

    Args:
      stages: from `made`.
      theirs: settings that they were made with, as JSON values.
      mine: settings of the command, as JSON values.

    Returns:
      (the first stage that depends on a changed setting and all that come after it,
      the names of the changed settings that it depends on).
    """
    changed = changes(theirs, mine)
    if not (theirs["lora"]["rank"] or mine["lora"]["rank"]):  # nothing reads them
        changed = {name: x for name, x in changed.items() if name[:5] != "lora."}
    asked = [stage for stage in stages if stage.stage == "prepare"]
    known = len(list(asked[0].paths[0].parent.glob("questions_*"))) if asked else 0
    for place, stage in enumerate(stages):
        depends = DEPENDS[stage.stage]
        if stage.stage == "search" and mine["judge"]["kind"] == "ratings":
            depends = (*depends, "eval.max_tokens")  # tokens of a candidate
        scores = [s["judge"]["score"] for s in (theirs, mine)]
        if stage.stage == "sft" and "pointwise" in scores:
            depends = (*depends, "judge.score")  # M1 learns another judgment
        if stage.stage == "search" and mine["judge"]["by"] == "http":
            depends = (*depends, "teacher")
        names = [name for name in changed if _is_in(name, depends)]
        for name, section, first, last in (
            ("data.questions", "data", 0, known),
            ("dpo.updates", "dpo", stage.number - 2, stage.number - 1),
        ):
            if name in names:
                counts = [s[section][name.partition(".")[2]] for s in (theirs, mine)]
                if _part(counts[0], first, last) == _part(counts[1], first, last):
                    names.remove(name)
        if stage.stage == "search" and stage.number == 1 and "judge.model" in names:
            names.remove("judge.model")  # M1 judges its own search in any case
        if names:
            return list(stages[place:]), names
    return [], []


def _part(counts: Sequence[int], first: int, last: int) -> list[int]:
    """Returns the counts of some iterations; the last count is that of later ones."""
    return [counts[min(n, len(counts) - 1)] for n in range(first, last) if counts]


def _is_in(name: str, sections: Sequence[str]) -> bool:
    if name in _JUDGE_TRAINING:
        return name in sections

    def inside(sections: Sequence[str]) -> bool:
        return any(name == s or name.startswith(f"{s}.") for s in sections)

    return inside(sections) and not inside(_FREE)


def measured_with(
    config: Mapping[str, Any], mode: str, number: int = 1
) -> dict[str, Any]:
    """Returns the settings that decide what a mode of evaluation measures.

    Args:
      config: all settings, as JSON values.
      mode: a key of `MEASURED`.
      number: of the model. The settings `model` and `seed` decide what M0 is.
    """
    every = _flat(config)
    depends = (*MEASURED[mode], *(() if number else ("model", "seed")))
    by = config["judge"]["by"]
    if mode == "search" and config["judge"]["kind"] == "ratings":
        depends = (*depends, "eval.max_tokens")  # tokens of a candidate
    if mode in ("search", "solve") and by == "http":
        depends = (*depends, "teacher.model", "teacher.temperature")
        depends = (*depends, "teacher.max_tokens")
    return {
        name: value
        for name, value in every.items()
        if _is_in(name, depends)
        # Here a model judges for itself, unless another judge takes its place.
        and (name != "judge.by" or is_foreign(value))
    }


def _flat(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        name = f"{at}.{key}".strip(".")
        result |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return result


def no_stage(name: str) -> str:
    """Returns a sentence about a --redo that names no stage, and what to do instead."""
    expected = f"expected one of {', '.join(DEPENDS)}, or a model such as M1"
    if name.lower().startswith("eval"):
        return (
            f"--redo={name}: measuring is no stage; {expected}. A measurement whose "
            "settings have changed is made again by itself. With the same settings, "
            "delete its file in the folder eval of --workdir and run `stepjax eval`."
        )
    return f"--redo={name}; {expected}{did_you_mean(name, DEPENDS)}."


def allows(name: str, stage: Made) -> bool:
    """Whether --redo=NAME lets a stage, and what comes after it, be deleted.

    Args:
      name: a stage of `DEPENDS`, a model such as "M1", or "".
      stage: the first that would be deleted.
    """
    order = list(DEPENDS)
    if name in DEPENDS:
        return order.index(name) <= order.index(stage.stage)
    return 0 < model_number(name) <= stage.number


def model_number(name: str) -> int:
    """Returns the number of a model, such as 2 for "M2"; 0 for what is no model."""
    number = name[1:] if name[:1] in "Mm" else ""
    return int(number) if number.isascii() and number.isdecimal() else 0


def refuse(folder: pathlib.Path, old: Sequence[Made], what: str) -> None:
    """Raises ValueError that names the stages which a change invalidates."""
    names = ", ".join(map(str, old))
    raise ValueError(
        f"{folder}: {what}. {names} would no longer be what these settings give; "
        f"expected the settings of {folder / 'config.json'}. Add --redo={old[0].stage} "
        f"to delete {names} and make them again, or use another --workdir."
    )


def set_aside(folder: pathlib.Path, old: Sequence[Made]) -> None:
    """Moves stages, and what was measured of their models, into a folder beside them.

    They can come back (`restore`) until it is certain that the new settings work
    (`drop`). A process that is killed in between leaves them there; the next command
    on the run directory brings them back first.
    """
    models = [stage.number for stage in old if stage.stage in ("sft", "dpo")]
    names = [f"M{number}_*" for number in models]
    names += ["M*"] if old[0].stage == "prepare" else []
    paths = [path for name in names for path in folder.glob(f"eval/{name}.json*")]
    paths += [path for stage in reversed(old) for path in stage.paths]
    paths = [path for path in paths if not set(path.parents) & set(paths)]
    inside = dict.fromkeys(str(path.relative_to(folder)) for path in paths)
    aside = folder / _ASIDE
    aside.mkdir()
    settings = config_json.read(folder)
    record = {"paths": list(inside), "config": settings}
    files.write_json(aside / _RECORD, record, sealed=True)
    for name in inside:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(aside / name)


def restore(folder: pathlib.Path) -> bool:
    """Brings back what was set aside; returns whether there was anything."""
    aside = folder / _ASIDE
    if not (aside / _RECORD).exists():
        shutil.rmtree(aside, ignore_errors=True)  # it was dropped, but not wholly
        return False
    record = files.read_json(aside / _RECORD)
    for name in reversed(record["paths"]):
        if (aside / name).exists():
            _delete(folder / name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).rename(folder / name)
    config_json.write(folder, record["config"])
    drop(folder)
    return True


def drop_unfinished(folder: pathlib.Path) -> None:
    """Deletes training states and journals of searches, which begin anew then."""
    for pattern in (
        "M*/train",
        "init/*/train",
        "M*/search.partial*",
        "init/*.partial*",
    ):
        for path in folder.glob(pattern):
            _delete(path)


def drop(folder: pathlib.Path) -> None:
    """Deletes what was set aside, if anything."""
    (folder / _ASIDE / _RECORD).unlink(missing_ok=True)  # from here on it is gone
    shutil.rmtree(folder / _ASIDE, ignore_errors=True)


def _delete(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
