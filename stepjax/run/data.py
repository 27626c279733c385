"""The first stage of a run: its data files and its tokenizer.

Writes ``DIR/data/{ift,eft,heldout,questions_1..n,test}.jsonl`` and ``DIR/tokenizer``.
Question files hold no answers.
"""

import functools
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from stepjax import prompts, records
from stepjax.initial_data import sources
from stepjax.lm import hosts, tokenizer
from stepjax.prompts import Templates
from stepjax.run import checks
from stepjax.run.kind import Kind, Reader, choose
from stepjax.run.rundir import RunDirectory
from stepjax.settings import Data, Settings
from stepjax.worlds import arithmetic, arithmetic_data


def _cut_by_rules(path: str, texts: Templates, form: str) -> list[records.Solution]:
    """Reads solutions that are not cut into steps yet, and cuts them by rules.

    Those that cannot be cut, such as proofs without a boxed answer, are left out; the
    counts are printed.
    """
    from stepjax.initial_data import ift

    worked = sources.read(path, form, "worked", texts)
    cuts = [ift.cut(row.solution) for row in worked]
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
READERS: dict[str, dict[str, Reader]] = {
    "ift": sources.readers("solution")
    | {
        form: functools.partial(_cut_by_rules, form=form) for form in ("math", "numina")
    },
    "question": sources.readers("question"),
    "test": sources.readers("problem"),
}


def world_templates(world: str) -> Templates:
    """Returns the templates of a world, or those of `stepjax.prompts` for ""."""
    return arithmetic.templates() if world == "arithmetic" else Templates()


def prepare(settings: Settings, texts: Templates, directory: RunDirectory) -> None:
    """Writes the data files and the tokenizer of a run, once.

    Args:
      settings: of the run.
      texts: its templates.
      directory: its directory.

    Raises:
      ValueError: see `make_data` and `make_tokenizer`.
    """
    folder = directory.path / "data"
    stage = directory.stage("prepare", folder / "manifest.json", {})
    if stage.done:
        return
    written, counts = [], {}
    if hosts.first():
        make_tokenizer(settings, directory.path / "tokenizer")
        counts = make_data(settings, texts, folder)
        written = [f"{name}.jsonl" for name in counts]
        ids = sorted((directory.path / "tokenizer").iterdir())
        written += [f"../tokenizer/{path.name}" for path in ids]
    stage.commit(written, counts=counts)


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
    wanted = data.questions[: settings.iterations]
    numbers = all(type(count) is int and count > 0 for count in wanted)
    if len(wanted) < settings.iterations or not numbers:
        raise ValueError(
            f"data.questions={data.questions} for iterations={settings.iterations}; "
            "expected one number above 0 per iteration."
        )
    if data.world == "arithmetic":
        splits = _from_world(settings, kind, wanted)
    else:
        splits = _from_files(data, kind, texts, wanted)
    questions = splits.pop("questions")
    splits |= {f"questions_{n}": rows for n, rows in enumerate(questions, 1)}
    checks.check_disjoint(splits)
    for row in splits["ift"]:
        try:
            prompts.check_steps(texts, row.steps)
        except ValueError as error:
            raise ValueError(f"IFT row {row.id!r}: {error}") from error
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        records.write_jsonl(directory / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in splits.items()}


def _from_world(
    settings: Settings, kind: Kind, wanted: Sequence[int]
) -> dict[str, Any]:
    data = settings.data
    splits = arithmetic_data.dataset(
        seed=settings.seed,
        ift=data.ift_count,
        eft=0 if data.make_eft else data.eft_count,
        heldout=data.heldout_count,
        questions=wanted,
        test=data.test_count,
        operations=data.operations,
        guessed_share=data.guessed_share,
        unseen_blocks=data.unseen_blocks,
        judgments=kind.world_rows,
        **_initial_counts(settings) if data.make_eft else {},
    )._asdict()
    made_later = ["eft"] if data.make_eft else list(INITIAL)
    for name in ["unseen"] * (not splits["unseen"]) + made_later:
        del splits[name]
    return splits


# Files that only a run with `data.make_eft` has: step labels, and questions to search.
INITIAL = ("labels", "labels_heldout", "tree_questions")


def _initial_counts(settings: Settings) -> dict[str, int]:
    prm = settings.prm
    counts = prm.labels_count, prm.heldout_count, settings.mcts.questions
    return dict(zip(INITIAL, counts, strict=True))


def _from_files(
    data: Data, kind: Kind, texts: Templates, wanted: Sequence[int]
) -> dict[str, Any]:
    readers = READERS | {"eft": kind.readers}
    names = {"ift": "ift", "eft": "eft", "question_file": "question", "test": "test"}
    formats = {rows: getattr(data, f"{rows}_format") for rows in names.values()}
    for rows, form in formats.items():
        if form not in readers[rows]:
            known = tuple(readers[rows])
            raise ValueError(
                f"data.{rows}_format={form!r}; expected one of {known} with judge.kind="
                f"{kind.name!r}."
            )
    for name in names:
        if not getattr(data, name):
            raise ValueError(
                f"data.{name} is empty; expected a file's path (or set data.world)."
            )
    ift, eft, pool, test = (
        readers[rows][formats[rows]](getattr(data, name), texts)
        for name, rows in names.items()
    )
    ift, test = ift[: data.ift_count or None], test[: data.test_count or None]
    problems = list(dict.fromkeys(row.problem for row in eft))
    if len(problems) < data.heldout_count:
        raise ValueError(
            f"{data.eft} has {len(problems)} problems; expected at least "
            f"data.heldout_count={data.heldout_count}, which are kept to measure the "
            "judge. Lower data.heldout_count."
        )
    first_held = len(problems) - data.heldout_count
    held = set(problems[first_held:]) if data.heldout_count else set()
    kept = [problem for problem in problems if problem not in held]
    train = set(kept[: data.eft_count or None])
    elsewhere = {row.problem for rows in (ift, eft, test) for row in rows}
    pool = [row for row in pool if row.problem not in elsewhere]
    if len(pool) < sum(wanted):
        raise ValueError(
            f"{data.question_file} has {len(pool)} questions that are in no other "
            f"split; expected at least {sum(wanted)} for data.questions="
            f"{tuple(wanted)}. Lower data.questions or data.ift_count."
        )
    starts = [sum(wanted[:n]) for n in range(len(wanted))]
    return {
        "ift": ift,
        "eft": [row for row in eft if row.problem in train],
        "heldout": [row for row in eft if row.problem in held],
        "questions": [pool[s : s + n] for s, n in zip(starts, wanted, strict=True)],
        "test": test,
    }


def make_tokenizer(settings: Settings, directory: pathlib.Path) -> tokenizer.Tokenizer:
    """Writes the run's tokenizer into its directory and returns it.

    Raises:
      ValueError: when none is named, or its files cannot be read.
    """
    path = settings.tokenizer
    if not path and settings.init.startswith("hf:"):
        path = settings.init.removeprefix("hf:")
    if path:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.load(tokenizer.fetch(path, folder)).save(directory)
    elif settings.data.world == "arithmetic":
        arithmetic.train_tokenizer(directory)
    else:
        raise ValueError(
            "config.tokenizer is empty; expected a folder or a tokenizer.json file "
            "(or model.init=hf:DIR, or a data.world)."
        )
    return tokenizer.load(directory)
