"""Makes the data files and the tokenizer of a run.

Writes ``DIR/data/{ift,eft,heldout,questions_1..n,test}.jsonl`` and ``DIR/tokenizer``.
Question files hold no answers. With word problems, ``DIR/data/equations.jsonl`` holds
the equations of all problems, for whatever may use the gold.
"""

import functools
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from stepjax import judge, prompts, records
from stepjax.initial_data.formats import sources
from stepjax.lm import files, pretrained, tokenizer
from stepjax.prompts import Templates
from stepjax.run import checks, world_rows
from stepjax.run.judge_rules import is_foreign
from stepjax.run.kind import Kind, choose
from stepjax.settings import Data, Settings


def _cut_by_rules(
    path: str, texts: Templates, form: str, *, strict: bool = False
) -> list[records.Solution]:
    """Reads solutions that are not cut into steps yet, and cuts them by rules.

    Those that cannot be cut, such as proofs without a boxed answer, are left out; the
    counts are printed.
    """
    from stepjax.initial_data import cutter, ift

    worked = sources.read(path, form, "worked", texts, strict=strict)
    cuts = [cutter.cut(row.solution) for row in worked]
    solutions, rejected = ift.solutions(worked, texts, cuts)
    print(f"{path}: {ift.summary(solutions, rejected)}", end="")
    if not solutions:
        raise ValueError(
            f"{path}: none of the {len(worked)} solutions can be cut into steps, the "
            f"first because of: {rejected[0].reason}; expected a boxed answer at the "
            "end of a solution."
        )
    return solutions


# Kind of rows → format → reader; those of EFT rows are in `Kind.readers`.
READERS: dict[str, dict[str, sources.Reader]] = {
    "ift": sources.readers("solution")
    | {
        form: functools.partial(_cut_by_rules, form=form) for form in ("math", "numina")
    },
    "question": sources.readers("question"),
    "test": sources.readers("problem"),
}


def make_data(
    settings: Settings, texts: Templates, directory: pathlib.Path
) -> dict[str, int]:
    """Writes the data files of a run.

    Args:
      settings: of the run.
      texts: its templates.
      directory: where the files go.

    Returns:
      File name → number of rows.

    Raises:
      ValueError: for a file that is missing or malformed, an unknown format, too few
        rows, or a problem that is in two splits.
    """
    data, kind = settings.data, choose(settings)
    wanted = data.counts(settings.iterations)
    if data.world == "word_problems":
        if not data.equations:
            raise ValueError(
                "data.equations is empty; expected the path of a file of word problems "
                "with their equations."
            )
        test = _tests(data, texts)[: data.test_count or None]
        splits = world_rows.word_problem_splits(settings, kind, texts, wanted, test)
    elif data.world:
        splits = world_rows.splits(settings, kind, wanted)
    else:
        splits = _from_files(settings, kind, texts, wanted)
    questions = splits.pop("questions")
    splits |= {f"questions_{n}": rows for n, rows in enumerate(questions, 1)}
    equations = splits.pop("equations", None)
    checks.check_disjoint(splits)
    for row in splits["ift"]:
        try:
            prompts.check_steps(texts, row.steps)
        except ValueError as error:
            where = f"{data.ift} (id {row.id})" if data.ift else f"IFT row {row.id!r}"
            raise ValueError(f"{where}: {error}") from error
    files.make_folder(directory)
    if equations is not None:
        splits["equations"] = equations
    for name, rows in splits.items():
        records.write_jsonl(directory / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in splits.items()}


def _from_files(
    settings: Settings, kind: Kind, texts: Templates, wanted: Sequence[int]
) -> dict[str, Any]:
    data = settings.data
    how = {"texts": texts, "strict": data.strict}
    ift = _read("data.ift", data.ift, data.ift_format, READERS["ift"], **how)
    test = _tests(data, texts)
    splits = {
        "ift": ift[: data.ift_count or None],
        "test": test[: data.test_count or None],
    }
    if data.make_eft:
        splits |= _made_from(settings, texts)
    elif is_foreign(settings.judge.by) and not data.eft:
        splits |= {"eft": [], "heldout": []}  # the model does not learn to judge
    else:
        splits |= _eft(data, kind, texts)
    _warn_of_prm800k(settings)
    questions = unused(
        "data.question_file",
        read_questions("data.question_file", data.question_file, data, **how),
        splits,
        sum(wanted) if wanted else settings.iterations,
        f"data.questions={tuple(wanted)}",
    )
    if not wanted and settings.iterations:
        wanted = (len(questions) // settings.iterations,) * settings.iterations
    questions = questions[: sum(wanted)]
    if data.make_eft:
        mcts = settings.mcts
        name = "mcts.question_file"
        pool = read_questions(name, mcts.question_file, mcts, **how)
        elsewhere = splits | {"questions": questions}
        stated = f"mcts.questions={mcts.questions}"
        pool = unused(name, pool, elsewhere, mcts.questions, stated)
        splits["tree_questions"] = pool[: mcts.questions]
    starts = [sum(wanted[:n]) for n in range(len(wanted))]
    splits["questions"] = [
        questions[s : s + n] for s, n in zip(starts, wanted, strict=True)
    ]
    return splits


def _read(
    name: str,
    path: str,
    form: str,
    readers: dict[str, sources.Reader],
    *,
    texts: Templates,
    strict: bool,
) -> list:
    """Reads the file of a setting."""
    if form not in readers:
        raise ValueError(
            f"{name}_format={form!r}; expected one of {tuple(readers)} with the other "
            "settings as they are."
        )
    if not path:
        raise ValueError(
            f"{name} is empty; expected a file's path (or set data.world)."
        )
    return readers[form](path, texts, strict=strict)


def read_questions(
    name: str, path: str, section: Any, *, texts: Templates, strict: bool
) -> list:
    """Reads the questions of a setting.

    Args:
      name: of the setting.
      path: its value.
      section: settings that it belongs to, with a `question_format`.
      texts: templates of the run.
      strict: setting `data.strict`.
    """
    form = section.question_format
    readers = READERS["question"]
    return _read(name, path, form, readers, texts=texts, strict=strict)


def _tests(data: Data, texts: Templates) -> list:
    how = {"texts": texts, "strict": data.strict}
    return _read("data.test", data.test, data.test_format, READERS["test"], **how)


def unused(
    name: str, pool: list, splits: dict[str, list], count: int, stated: str
) -> list:
    """Returns the questions that are in no split.

    Args:
      name: of the setting that names their file.
      pool: the questions.
      splits: name → rows, each with a `problem`.
      count: how many are needed.
      stated: what needs them, for people, e.g. "data.questions=(4, 5)".

    Raises:
      ValueError: when there are less than `count`.
    """
    elsewhere = {row.problem for rows in splits.values() for row in rows}
    left = [row for row in pool if row.problem not in elsewhere]
    if len(left) < count:
        raise ValueError(
            f"{name} has {len(left)} questions that are in no other split; expected at "
            f"least {count} for {stated}. Lower {stated.partition('=')[0]} or "
            "data.ift_count."
        )
    return left


def _warn_of_prm800k(settings: Settings) -> None:
    """Prints a warning where the run learns from PRM800K and is measured on MATH."""
    from stepjax.initial_data import decontaminate

    data, prm = settings.data, settings.prm
    form = prm.labels_format if data.make_eft else data.eft_format
    if prm.reads_labels or not data.make_eft:
        measured = [data.test, *settings.eval.benchmarks]
        for warning in decontaminate.warnings(form, measured):
            print(f"stepjax: {warning}", flush=True)


def _eft(data: Data, kind: Kind, texts: Templates) -> dict[str, list]:
    """Reads the EFT rows; the last problems are kept to measure the judge."""
    how = {"texts": texts, "strict": data.strict}
    eft = _read("data.eft", data.eft, data.eft_format, kind.readers, **how)
    for row in eft:
        if isinstance(row, records.Comparison):
            judge.check_verdict(row, kind.judgments.sides, texts, data.eft)
    eft, heldout = hold_out(
        eft, "data.heldout_count", data.heldout_count, source=data.eft, left=0
    )
    problems = list(dict.fromkeys(row.problem for row in eft))
    train = set(problems[: data.eft_count or None])
    return {"eft": [row for row in eft if row.problem in train], "heldout": heldout}


def _made_from(settings: Settings, texts: Templates) -> dict[str, list]:
    """Reads the step labels that a PRM learns from, unless rollouts make them."""
    prm = settings.prm
    if not prm.reads_labels:
        return {}
    readers = sources.readers("labels")
    how = {"texts": texts, "strict": settings.data.strict}
    rows = _read("prm.labels", prm.labels, prm.labels_format, readers, **how)
    rows, heldout = hold_out(
        rows, "prm.heldout_count", prm.heldout_count, source=prm.labels
    )
    return {"labels": rows[: prm.labels_count or None], "labels_heldout": heldout}


def hold_out(
    rows: Sequence, setting: str, count: int, *, source: str, left: int = 1
) -> tuple[list, list]:
    """Keeps the rows of the last problems for measuring.

    Args:
      rows: each has a `problem`.
      setting: name of the setting that says how many problems.
      count: its value.
      source: where the rows come from, for people.
      left: how many problems must be left to learn from.

    Returns:
      (rows to learn from, rows to measure with).

    Raises:
      ValueError: when there are too few problems.
    """
    problems = list(dict.fromkeys(row.problem for row in rows))
    if len(problems) < count + left:
        raise ValueError(
            f"{source} has {len(problems)} problems; expected at least "
            f"{setting}={count}, which are kept for measuring"
            f"{f', and {left} more to learn from' if left else ''}. Lower {setting}."
        )
    held = set(problems[len(problems) - count :])
    return (
        [row for row in rows if row.problem not in held],
        [row for row in rows if row.problem in held],
    )


def make_tokenizer(settings: Settings, directory: pathlib.Path) -> tokenizer.Tokenizer:
    """Writes the run's tokenizer into its directory and returns it.

    Beside it go the config.json and the generation_config.json of a pretrained M0, so
    that the run needs nothing but the weights from where M0 was.

    Raises:
      ValueError: when none is named, or its files cannot be read.
    """
    if settings.init.partition(":")[0] in pretrained.KINDS:
        return pretrained.save_tokenizer(settings.init, directory, settings.tokenizer)
    if settings.tokenizer:
        with tempfile.TemporaryDirectory() as folder:
            path = tokenizer.fetch(settings.tokenizer, folder)
            tokenizer.load(path).save(directory)
    elif settings.data.world in world_rows.TOKENIZERS:
        world_rows.TOKENIZERS[settings.data.world](directory)
    else:
        raise ValueError(
            "tokenizer is empty; expected a folder or a tokenizer.json file (or "
            "model.init=hf:DIR or gguf:FILE, or a data.world)."
        )
    return tokenizer.load(directory)
