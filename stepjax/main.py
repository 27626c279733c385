"""The command line: ``stepjax run``, ``ablate``, ``eval`` and so on, see `COMMANDS`."""

import dataclasses
import functools
import os
import pathlib
import sys
import traceback
from typing import TYPE_CHECKING

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

import stepjax

if TYPE_CHECKING:
    from stepjax.run.run import Run

_USAGE = """usage: stepjax COMMAND --config=FILE --workdir=DIR [--config.NAME=VALUE ...]

  run      the whole loop M0 → M1 → ...; the same command continues after a kill
  sft      M0 → M1
  search   what --model makes of its questions: search.jsonl and pairs.jsonl
  dpo      --model → the next one
  eval     measures --model; --mode=greedy|unseen|judge|search|training|all,
           --benchmark=FILE
  export   writes --model to --out as a Hugging Face directory;
           --dtype=float32|bfloat16, --verify reads it again and compares
  ablate   the loop with its controls: one table and a figure;
           --seeds=0,1,2 --arms=self,random,oracle,sft,srlm
  init-data  data for M1 from public data sets; `stepjax init-data` says more
  On a slice of several hosts, every host runs the same command with --hosts=N.

  plan     the memory and time that a run needs on a TPU slice, computed
           without a TPU and without a --workdir: --topology=v5p:2x2x2 or v5p-16,
           --stage=sft|dpo|search|all, --utilisation=0.4, --nosuggest

Commands on an existing --workdir take its config.json when --config is left out.
"""

COMMANDS = (
    *("run", "sft", "search", "dpo", "eval", "export", "ablate", "plan"),
    "init-data",
)

_config = config_flags.DEFINE_config_file("config", None, "Settings of the run.")
_workdir = flags.DEFINE_string("workdir", None, "The run directory.")
_model = flags.DEFINE_string("model", "M1", "Which model: M0, M1, ...")
_modes = ("greedy", "unseen", "judge", "search", "training", "all")
_mode = flags.DEFINE_enum("mode", "all", _modes, "What to measure.")
_benchmark = flags.DEFINE_string("benchmark", "test", "'test', or a file of problems.")
_seeds = flags.DEFINE_list("seeds", "0,1,2", "ablate: seeds of the repetitions.")
_arms = flags.DEFINE_list(
    "arms", "self,random,oracle,sft,srlm", "ablate: what to compare."
)
_hosts = flags.DEFINE_integer("hosts", 1, "How many hosts run this command together.")
_topology = flags.DEFINE_string("topology", None, "plan: a slice, v5p:2x2x2 or v5p-16.")
_stage = flags.DEFINE_string("stage", "all", "plan: sft, dpo, search or all.")
_utilisation = flags.DEFINE_float(
    "utilisation", 0.4, "plan: share of the peak reached."
)
_suggest = flags.DEFINE_bool(
    "suggest", True, "plan: find the smallest slice that fits."
)
_out = flags.DEFINE_string("out", None, "Where to export to.")
_dtype = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "export: type of the saved weights."
)
_verify = flags.DEFINE_bool(
    "verify", False, "export: read the written directory again and compare it."
)


def entry() -> None:
    """Entry point of the ``stepjax`` command."""
    # Only tokenizers are used of transformers; it need not say that torch is missing.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a terminal without UTF-8 shows \u4e2d and the like
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv))


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
      argv: program name and arguments.

    Returns:
      Exit status: 0; 1 for a failed run, 2 for wrong arguments, 130 after Ctrl-C.
    """
    if len(argv) < 2 or argv[1] not in COMMANDS:
        asked = len(argv) > 1 and argv[1] in ("help", "-h", "--help", "-help")
        print(_USAGE, file=sys.stdout if asked else sys.stderr)
        if len(argv) > 1 and not asked:
            print(f"stepjax: unknown command {argv[1]!r}", file=sys.stderr)
        return 0 if asked else 2
    words = argv[2:]
    if argv[1] == "init-data":
        from stepjax.initial_data import command as init_data

        status = init_data.usage(words)
        if status is not None:
            return status
        words = words[1:]
    # Before anything that takes seconds: a config file may import what it likes.
    _say(f"stepjax {stepjax.__version__}: {' '.join(argv[1:])}")
    try:
        rest = flags.FLAGS([argv[0], *words])[1:]
        if rest:
            raise flags.Error(
                f"unexpected arguments {rest}; expected options, which begin with --."
            )
        if argv[1] == "plan" and not (_topology.value and _config.value):
            raise flags.Error("plan needs --topology and --config; expected both.")
        if argv[1] not in ("plan", "init-data") and not _workdir.value:
            raise flags.Error("--workdir is missing; expected the run directory.")
        if argv[1] == "ablate" and not all(seed.isdigit() for seed in _seeds.value):
            raise flags.Error(f"--seeds={_seeds.value}; expected numbers from 0.")
        named = _config.value is not None or _workdir.value
        config = _settings() if named else None
        work = functools.partial(_run, argv[1], config)
        if argv[1] == "init-data":
            opened = functools.partial(_open_run, config)
            work = init_data.prepare(argv[2], config, opened)
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError, OSError) as e:
        print(f"stepjax: {_in_words(e)}", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)
    try:
        work()
    except ValueError as error:
        if not _is_ours(error):
            raise
        print(f"stepjax: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stepjax: interrupted; the same command continues.", file=sys.stderr)
        return 130
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _devices() -> str:
    """Returns in words what JAX runs on."""
    import jax

    count, kind = jax.device_count(), jax.devices()[0].device_kind
    named = f"{count} device{'s' if count > 1 else ''} ({kind})"
    return f"JAX {jax.__version__} on {named}; loading the other libraries"


def _settings() -> ml_collections.ConfigDict:
    """Returns the settings of --config, or of the run directory."""
    from stepjax.config import from_dict
    from stepjax.lm.files import read_json

    if _config.value is not None:
        return _config.value.copy_and_resolve_references()  # raises if not loaded
    path = pathlib.Path(_workdir.value) / "config.json"
    if not path.exists():
        raise ValueError(
            f"--config is missing and {path} does not exist; expected one of them. "
            "Give --config=FILE for a new run."
        )
    return from_dict(read_json(path))


def _open_run(config: ml_collections.ConfigDict) -> "Run":
    _say("starting JAX")
    from stepjax.lm import hosts

    hosts.start(_hosts.value)
    _say(_devices())
    from stepjax.run.run import Run

    return Run(config, _workdir.value)


def _run(command: str, config: ml_collections.ConfigDict) -> None:
    _say("starting JAX")
    if command == "plan":
        _plan(config)
        return
    from stepjax.lm import hosts

    hosts.start(_hosts.value)
    _say(_devices())
    from stepjax import iterate
    from stepjax.evaluation import stages
    from stepjax.run.run import Run

    if command == "run":
        iterate.run(config, _workdir.value)
        return
    if command == "ablate":
        from stepjax import ablate

        seeds = [int(seed) for seed in _seeds.value]
        ablate.ablate(config, _workdir.value, seeds, _arms.value)
        return
    number = _number(command, config)
    if command == "export" and not _out.value:
        raise ValueError("--out is missing; expected the folder to write.")
    run = Run(config, _workdir.value)
    if command == "sft":
        iterate.sft(run)
    elif command == "search":
        iterate.search(run, number)
    elif command == "dpo":
        iterate.dpo(run, number)
    elif command == "eval":
        modes = _modes[:-1] if _mode.value == "all" else (_mode.value,)
        measured = stages.evaluate(run, number, modes, _benchmark.value)
        for mode, metrics in measured.items() if hosts.first() else ():
            print(mode, {k: round(v, 4) for k, v in metrics.items()})
    else:
        _export(run, number)


def _export(run: "Run", number: int) -> None:
    from stepjax.lm import export, hosts

    settings, tokenizer = run.settings, run.codec.tokenizer
    shape, params = run.model.config, run.params(number)
    lengths = (
        settings.train.row_length,
        settings.search.context_tokens,
        settings.judge.context_tokens,
    )
    same = {"stop_ids": tokenizer.stop_ids, "dtype": _dtype.value}
    export.save_hf(
        params,
        shape,
        _out.value,
        tokenizer_directory=tokenizer.directory,
        bos_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
        context_length=max(lengths),  # of a random M0; a pretrained one has its own
        prompts=dataclasses.asdict(run.codec.templates),
        **same,
    )
    verified = ""
    if _verify.value:
        shardings = run.shardings()
        verified = export.verify_hf(
            params, shape, _out.value, shardings=shardings, **same
        )
    if hosts.first():
        _say(f"M{number} is written to {_out.value} in {_dtype.value}")
        if verified:
            _say(verified)


def _plan(config: ml_collections.ConfigDict) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # leaves an accelerator to others
    from stepjax.planning import plan
    from stepjax.settings import from_config

    options = _stage.value, _utilisation.value, _suggest.value
    print(plan.plan(from_config(config), _topology.value, *options, say=_say))


def _number(command: str, config: ml_collections.ConfigDict) -> int:
    """Returns the number of --model, which must be there for the command."""
    if command == "sft":
        return 1
    name = _model.value
    if name[:1] != "M" or not (name[1:].isascii() and name[1:].isdigit()):
        raise ValueError(f"--model={name!r}; expected M0, M1, ...")
    number, last = int(name[1:]), config.iterations
    low, high = (1, last) if command in ("search", "dpo") else (0, last + 1)
    if not low <= number <= high:
        raise ValueError(
            f"--model={name}; expected M{low} to M{high} for `stepjax {command}` with "
            f"iterations={last}."
        )
    manifest = pathlib.Path(_workdir.value) / name / "manifest.json"
    if number and not manifest.exists():
        raise ValueError(
            f"--model={name}: {manifest} is missing; expected a finished model. Run "
            "`stepjax run` on the same --workdir first."
        )
    return number


def _in_words(error: Exception) -> str:
    if isinstance(error, KeyError | AttributeError):
        text = error
        while isinstance(text, Exception):  # ml_collections wraps its messages
            text = text.args[0]
        return f"unknown setting: {text}"
    return f"{error} [{type(error).__name__}]"


def _is_ours(error: Exception) -> bool:
    """Whether stepjax itself raised the error, so that it needs no traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return pathlib.Path(last).is_relative_to(pathlib.Path(__file__).parent)
