"""The command ``stepjax init-data``: IFT, EFT and PRM data from public data sets.

`stepjax.main` imports this file, and so defines these flags, for this command only.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ml_collections
from absl import flags

from stepjax import own_files, records
from stepjax.initial_data.formats import files, preferences, prm800k, sources
from stepjax.prompts import Templates
from stepjax.run import paths

if TYPE_CHECKING:
    from stepjax.run.run import Run

_USAGE = """usage: stepjax init-data ACTION [--NAME=VALUE ...]

  convert  --input=PATH --format=NAME --to=KIND --output=FILE
           a public data set to rows of stepjax, or to rows of other programs
  ift      --input=PATH --format=NAME --output=FILE [--cut=rules|teacher]
           solutions, cut into steps (IFT)
  eft      --input=PATH --format=NAME --output=FILE
           --explanation=none|template|teacher
           judgments of pairs that people rated (EFT), as in PRM800K
  prm      --config=FILE --workdir=DIR   the process reward model of a run, and how
           good it is; --processbench=FILE also measures it on rows of ProcessBench
  mcts     --config=FILE --workdir=DIR   pairs of steps by tree search
  eft      --config=FILE --workdir=DIR   judgments of these pairs by a teacher
           The last three need a run with data.make_eft, and first make what they need.

PATH is a JSON, JSON lines, CSV, TSV or parquet file, also with .gz, or a folder; or
tfds:NAME/SPLIT?FIELD=NAME&data_dir=DIR for rows of tensorflow-datasets.
--rejects=FILE lists bad rows there instead of stopping at the first. --against=FILE,...
leaves out problems of these evaluation files. --force replaces output files.
--config=FILE brings the prompts and the teacher of its settings.

--format    --to
"""

PAIRS = "pairs"  # a format of its own: it needs the run's tokenizer
ACTIONS = ("convert", "ift", "prm", "mcts", "eft")
WRITERS = {"trl": preferences.to_trl, "step-dpo": preferences.to_step_dpo}

_input = flags.DEFINE_string("input", None, "init-data: a file, or a folder of them.")
_format = flags.DEFINE_enum(
    "format", None, [*sources.FORMATS, PAIRS], "init-data: the schema of --input."
)
_to = flags.DEFINE_enum(
    "to", None, [*sources.TYPES, *WRITERS], "init-data convert: what is written."
)
_output = flags.DEFINE_string("output", None, "init-data: the file to write.")
_rejects = flags.DEFINE_string("rejects", None, "init-data: the file of bad rows.")
_neutral = flags.DEFINE_enum(
    "neutral", "+", ["+", "-", ""], "init-data: the label of PRM800K's rating 0."
)
_cut = flags.DEFINE_enum(
    "cut", "rules", ["rules", "teacher"], "init-data ift: who cuts the solutions."
)
_against = flags.DEFINE_list(
    "against", [], "init-data: evaluation files whose problems are left out."
)
_explanation = flags.DEFINE_enum(
    "explanation",
    "template",
    ["none", "template", "teacher"],
    "init-data eft: what a judgment says before its verdict.",
)
_processbench = flags.DEFINE_string(
    "processbench", None, "init-data prm: a file of ProcessBench, or a folder of them."
)
_force = flags.DEFINE_bool("force", False, "init-data: replace output files.")

# The flags that an action reads, beside --config and --workdir.
_FILES = ("input", "format", "output", "rejects", "against", "force")
_TAKEN = {
    "convert": (*_FILES, "to", "neutral"),
    "ift": (*_FILES, "cut"),
    "eft": (*_FILES, "explanation"),
    "prm": ("processbench",),
    "mcts": (),
}


def usage(arguments: Sequence[str]) -> int | None:
    """Prints how the command is used, unless an action is named.

    Args:
      arguments: what follows ``stepjax init-data``.

    Returns:
      The exit status after printing; None when the first argument is an action and
      nobody asks for help.
    """
    helps = ("help", "-h", "--help", "-help")
    asked = any(word in helps for word in arguments)
    if arguments and arguments[0] in ACTIONS and not asked:
        return None
    made = {form: ", ".join(makes) for form, makes in sources.FORMATS.items()}
    made[PAIRS] = "preference; PATH is pairs.jsonl in the directory of a run"
    text = _USAGE + "\n".join(f"{form:14}{makes}" for form, makes in made.items())
    text += f"\nA preference can also be written with --to={'|'.join(WRITERS)}."
    (_print if asked else _say)(text)
    if arguments and not asked:
        _say(
            f"stepjax: init-data: unknown action {arguments[0]!r}; expected one of "
            f"{', '.join(ACTIONS)}{own_files.did_you_mean(arguments[0], ACTIONS)}."
        )
    return 0 if asked else 2


def prepare(
    action: str,
    config: ml_collections.ConfigDict | None,
    open_run: Callable[[], "Run"],
) -> Callable[[], None]:
    """Checks the flags of an action and returns what it does.

    Args:
      action: one of `ACTIONS`; the flags have been read.
      config: settings of --config or of the run directory, or None without either.
      open_run: returns the run of --workdir.

    Raises:
      flags.Error: a flag that the action needs is missing, or an output file is there.
    """
    _expand_home()
    of_run = action in ("prm", "mcts") or action == "eft" and not _input.value
    if of_run:
        if not flags.FLAGS.workdir:
            what = " (or --input, for rows that people rated)" * (action == "eft")
            raise flags.Error(
                f"--workdir is missing; expected the run directory{what}."
            )
        _check_taken(action, () if action == "eft" else _TAKEN[action])
        if not config.data.make_eft:
            raise flags.Error(
                f"data.make_eft is False in the settings of {flags.FLAGS.workdir}; "
                f"expected True for `stepjax init-data {action}`. Set data.make_eft in "
                "a config file for a new --workdir."
            )
        return functools.partial(_in_run, action, open_run)
    _check_taken(action, _TAKEN[action])
    needed = {"input": _input, "format": _format, "output": _output}
    needed |= {"to": _to} if action == "convert" else {}
    missing = [f"--{name}" for name, flag in needed.items() if not flag.value]
    if missing:
        raise flags.Error(
            f"init-data {action} needs {' '.join(missing)}; expected all of "
            f"--{' --'.join(needed)}."
        )
    labels = (_format.value, _to.value) == ("prm800k", "labels")
    if flags.FLAGS[_neutral.name].present and not labels:
        raise flags.Error(
            "--neutral is for --format=prm800k --to=labels; expected these, or no "
            "--neutral."
        )
    written = [pathlib.Path(p) for p in (_output.value, _rejects.value) if p]
    read = [_input.value, *_against.value]
    read = [pathlib.Path(path).resolve() for path in read]
    for path in written:
        _check_output(path, read)
    names = [path.resolve() for path in written]
    if len(set(names)) < len(names):
        raise flags.Error(
            "--output and --rejects name the same file; expected different ones."
        )
    if config is None and "teacher" in (_cut.value, _explanation.value):
        raise flags.Error(
            "a teacher needs --config; expected a config file with the section "
            "`teacher`."
        )
    work = {"convert": _convert, "ift": _ift, "eft": _rated}[action]
    return functools.partial(work, config)


def _check_taken(action: str, taken: Sequence[str]) -> None:
    """Raises flags.Error for a flag that the action would pass over in silence."""
    others = [
        f"--{name}"
        for name in dict.fromkeys(name for names in _TAKEN.values() for name in names)
        if flags.FLAGS[name].present and name not in taken
    ]
    if others:
        known = " ".join(f"--{name}" for name in (*taken, "config", "workdir"))
        raise flags.Error(
            f"{' '.join(others)} with init-data {action}, which does not read it; "
            f"expected only {known}."
        )


def _expand_home() -> None:
    """Replaces ~ in the paths of the flags; the shell leaves --input=~/x alone.

    Raises:
      flags.Error: a path is the address of object storage.
    """
    named = (_input, _output, _rejects, _processbench)
    given = [(holder.name, holder.value or "") for holder in named]
    for name, path in given + [(_against.name, path) for path in _against.value]:
        remedy = "Copy files there and back with `gcloud storage cp`."
        if address := paths.elsewhere(f"--{name}", path, "a file", remedy):
            raise flags.Error(address)
    for holder in named:
        if holder.value:
            flags.FLAGS[holder.name].value = os.path.expanduser(holder.value)
    against = [os.path.expanduser(path) for path in _against.value if path.strip()]
    flags.FLAGS[_against.name].value = against


def _check_output(path: pathlib.Path, read: Sequence[pathlib.Path]) -> None:
    """Raises flags.Error unless a file can be written that no input is or holds."""
    if path.is_dir() or path.exists() and not path.is_file():
        raise flags.Error(f"{path} is no file; expected the name of a file to write.")
    if path.exists() and not _force.value:
        raise flags.Error(f"{path} exists; expected a new file. Use --force.")
    if not path.resolve().parent.is_dir():
        raise flags.Error(
            f"{path.parent} is no folder; expected the folder of {path.name}."
        )
    if not os.access(path.resolve().parent, os.W_OK):
        raise flags.Error(
            f"{path.parent} cannot be written to; expected a folder with permission."
        )
    for other in read:
        if path.resolve() == other:
            raise flags.Error(
                f"{path} is read and would be written; expected different files."
            )
        if path.resolve().is_relative_to(other):
            raise flags.Error(
                f"{path} lies in {other}, all of whose files are read, so the next "
                "command would read it too; expected a file in another folder."
            )


def _in_run(action: str, open_run: Callable[[], "Run"]) -> None:
    """Makes the initial data of a run up to this action, and says what came out."""
    run = open_run()
    if action == "prm" and not run.settings.prm.learns:
        raise ValueError(
            "prm.labels='gold' in the settings of the run, which has no PRM; expected "
            "`stepjax init-data mcts`, which is scored by the gold."
        )
    from stepjax.initial_data import prm, stages
    from stepjax.lm import hosts
    from stepjax.lm.files import read_json

    bench = []
    if _processbench.value:  # before anything is trained: the file may be bad
        texts = run.codec.templates
        bench = sources.read(_processbench.value, "processbench", "labels", texts)
    stages.make(run, last=action)
    folder = run.dir.path / "init"
    name = {"prm": "prm/manifest", "mcts": "mcts", "eft": "eft"}[action]
    made = read_json(folder / f"{name}.json")
    shown = made["metrics"] if action == "prm" else made["counts"]
    lines = [f"{action}: {stages.in_words(shown)}"]
    if bench:
        params = run.load_for_sampling(folder / "prm")
        kept, read = stages.read_steps(run, params, bench, "processbench")
        found = prm.first_error_metrics(kept, read)
        found["left_out"] = len(bench) - len(kept)
        lines.append(f"processbench: {stages.in_words(found)}")
    if hosts.first():
        print("\n".join(lines))


def _convert(config: ml_collections.ConfigDict | None) -> None:
    to = _to.value
    rows, texts = _read("preference" if to in WRITERS else to, config)
    if to in WRITERS:
        rows = [WRITERS[to](row, texts) for row in rows]
    _write(rows)


def _ift(config: ml_collections.ConfigDict | None) -> None:
    from stepjax.initial_data import cutter, ift

    own_steps = (
        _format.value != "jsonl" and "solution" in sources.FORMATS[_format.value]
    )
    if own_steps and _cut.value == "rules":
        rows, texts = _read("solution", config)
    else:
        whole, texts = _read("worked", config)
        if _cut.value == "teacher":
            ask = _teacher(config)
            answers = ask([ift.teacher_prompt(texts, row) for row in whole])
            cuts = [ift.read_teacher_cut(answer.text, texts) for answer in answers]
        else:
            cuts = [cutter.cut(row.solution) for row in whole]
        rows, rejected = ift.solutions(whole, texts, cuts)
        _print(ift.summary(rows, rejected).rstrip())
    _write(rows)


def _rated(config: ml_collections.ConfigDict | None) -> None:
    from stepjax.initial_data import eft

    pairs, texts = _read("preference", config)
    if _explanation.value != "teacher":
        _write(eft.rated(pairs, _explanation.value))
        return
    answers = _teacher(config)(eft.requests(pairs, texts))
    kept = eft.keep(pairs, answers, texts, truth="the people")
    _print(eft.table(kept.reasons))
    _write(kept.rows)


def _teacher(config: ml_collections.ConfigDict) -> Callable:
    """Returns the teacher of the settings; its answers are kept beside the output."""
    from stepjax.initial_data import teacher
    from stepjax.settings import from_config

    options = from_config(config).teacher
    if options.backend not in ("http", "replay"):
        raise ValueError(
            f"teacher.backend={options.backend!r}; expected 'http' or 'replay' with "
            "--input. A model of a run judges in `stepjax init-data eft --workdir`."
        )
    return teacher.make_teacher(options, f"{_output.value}.answers.jsonl", say=_say)


def _templates(config: ml_collections.ConfigDict | None) -> Templates:
    if config is None:
        return Templates()
    from stepjax import settings
    from stepjax.run import world_rows

    texts = settings.from_config(config).texts
    return settings.templates(texts, world_rows.templates(config.data.world))


def _read(to: str, config: ml_collections.ConfigDict | None) -> tuple[list, Templates]:
    """Reads --input, says what was read, and writes --rejects.

    Returns:
      The rows, and the templates in which their steps are written.
    """
    path, form, texts = _input.value, _format.value, _templates(config)
    rejects = files.Rejects(collect=bool(_rejects.value), say=_say)
    try:
        if form == PAIRS:
            from stepjax.initial_data.formats import run_pairs

            if to != "preference":
                raise ValueError(
                    f"format {PAIRS!r} gives 'preference'; expected it instead of "
                    f"{to!r}."
                )
            rows, texts = run_pairs.read(path, rejects)
        else:
            parse = sources.parser(form, to)
            if parse is prm800k.labels:
                parse = functools.partial(parse, neutral=_neutral.value)
            kind = sources.TYPES[to] if form == "jsonl" else None
            rows = sources.read_with(path, parse, form, texts, rejects, own_type=kind)
    except ValueError:
        if rejects.rows:
            _save(_rejects.value, rejects.rows)
        raise
    if _rejects.value:
        _save(_rejects.value, rejects.rows)
    bad = len(rejects.rows)
    _print(f"read {rejects.read:,} rows: kept {rejects.kept:,}, rejected {bad:,}")
    if form in sources.SOLUTIONS and to in ("question", "problem"):
        _print(
            f"they are solutions of {len(rows):,} problems, which become one row each"
        )
    for reason, count in rejects.reasons.most_common(20):
        _print(f"  {count:,} rejected: {reason}")
    others = rejects.reasons.most_common()[20:]
    if others:
        count = sum(count for _, count in others)
        _print(f"  {count:,} rejected: {len(others):,} other reasons")
    if bad:
        _print(f"the rejected rows and their reasons are in {_rejects.value}")
    return _apart(rows) if _against.value else rows, texts


def _apart(rows: list) -> list:
    """Leaves out the rows whose problem shares text with one of --against."""
    from stepjax.initial_data import decontaminate

    evaluations = {
        path: sources.read(path, "benchmark", "question", Templates())
        for path in _against.value
    }
    found = decontaminate.overlaps(rows, evaluations)
    _print(decontaminate.report(found, evaluations).rstrip())
    for warning in decontaminate.warnings(_format.value, evaluations, found):
        _say(f"stepjax: {warning}")
    kept = decontaminate.remove(rows, found)
    _print(f"{len(rows) - len(kept):,} rows share text with them and are left out")
    return kept


def _write(rows: Sequence) -> None:
    if not rows:
        raise ValueError(
            f"nothing is left to write to {_output.value}; expected at least one row."
        )
    _save(_output.value, rows)
    _print(f"wrote {len(rows):,} rows to {_output.value}")


def _save(path: str, rows: Sequence) -> None:
    try:
        records.write_jsonl(path, rows)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written ({error.strerror}); expected a disk with space "
            "for it, and permission. Nothing was written there."
        ) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(text: str) -> None:
    """Prints a line; where nobody reads on, as behind `| head -1`, the work goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
