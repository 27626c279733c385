"""The command line: ``stepjax run``, ``ablate``, ``eval`` and so on; see `cli.help`.

Whatever takes seconds to import is imported when a command has been understood and its
settings have been checked; what is wrong with them is said in a fraction of a second.
"""

import atexit
import dataclasses
import functools
import os
import pathlib
import signal
import sys
from typing import TYPE_CHECKING

import stepjax
from stepjax import interrupts, os_errors, own_files
from stepjax.cli import help, outcome
from stepjax.cli.stderr import Stderr

if TYPE_CHECKING:
    import ml_collections

    from stepjax.run.run import Run

COMMANDS = tuple(help.COMMANDS)
_HELPS = ("help", "-h", "--help", "-help")
_VERSIONS = ("version", "-V", "--version", "-version")


def entry() -> None:
    """Entry point of the ``stepjax`` command."""
    interrupts.until_begun()
    # Registered before JAX is imported, so that it runs after JAX has left the hosts.
    atexit.register(outcome.end_watch)
    # Only tokenizers are used of transformers; it need not say that torch is missing.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    how = {"errors": "backslashreplace"}  # a terminal without UTF-8 shows \u4e2d
    if sys.stdout is not None:
        sys.stdout.reconfigure(**how)
    if sys.stderr is not None:
        encoding = sys.stderr.encoding
        sys.stderr = Stderr(sys.stderr.buffer, encoding, line_buffering=True, **how)
    try:
        status = main(sys.argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head -1` has read enough
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
      argv: program name and arguments.

    Returns:
      Exit status: 0; 1 for a failed run, 2 for wrong arguments or settings; after a
      signal 128 and its number, e.g. 130 after Ctrl-C.
    """
    status = _answered(argv[1:])
    if status is not None:
        return status
    try:
        return _command(argv)
    except ImportError as error:
        missing = own_files.missing_package(error)
        if not missing:
            raise
        name = f"{argv[1]} " if missing.startswith("needs") else ""
        return outcome.refused(f"{name}{missing}", 1)


def _answered(words: list[str]) -> int | None:
    """Prints help or the version if they are asked for, or what is wrong.

    Returns:
      The exit status, or None when a command is to be run.
    """
    if words and words[0] in _VERSIONS:
        print(f"stepjax {stepjax.__version__}")
        return 0
    if words and words[0] in _HELPS and words[1:2] and words[1] in COMMANDS:
        words = [words[1], "--help"]
    if words and words[0] in _HELPS and words[1:2] and words[1][:1] != "-":
        words = words[1:]  # of a command that there is not
    if not words or words[0] not in COMMANDS:
        asked = bool(words) and words[0] in _HELPS
        print(help.usage(), file=sys.stdout if asked else sys.stderr)
        if words and not asked:
            hint = own_files.did_you_mean(words[0], COMMANDS)
            outcome.refused(
                f"unknown command {words[0]!r}; expected one of {', '.join(COMMANDS)}"
                f"{hint}.",
                2,
            )
        return 0 if asked else 2
    if words[0] != "init-data" and any(word in _HELPS for word in words):
        print(help.of(words[0]), end="")
        return 0
    return None


def _command(argv: list[str]) -> int:
    """Runs a command that is known; returns the exit status."""
    name, words = argv[1], argv[2:]
    from absl import flags, logging

    from stepjax.cli import arguments, config_files, explain

    if name == "init-data":
        from stepjax.initial_data import command as init_data

        status = init_data.usage(words)
        if status is not None:
            return status
        words = words[1:]
    # Before anything that takes seconds: a config file may import what it likes.
    outcome.say(f"stepjax {stepjax.__version__}: {' '.join(argv[1:])}")
    try:
        words = config_files.arguments(words)
        try:
            rest = flags.FLAGS([argv[0], *words])[1:]
        except (
            *(flags.Error, ValueError, AttributeError, KeyError, TypeError),
            IndexError,
        ) as error:
            return outcome.refused(explain.override(error, words), 2)
        if rest:
            raise ValueError(
                f"unexpected arguments {rest}; expected options, which begin with --."
            )
        if name != "init-data":
            arguments.check_options(name)
        config = arguments.settings(name)
        work = functools.partial(_run, name, config)
        if name == "init-data":
            opened = functools.partial(_open_run, config)
            work = init_data.prepare(argv[2], config, opened)
        elif name not in ("plan", "config", "ablate", "check"):
            arguments.check_models(name, config)
    except (flags.Error, ValueError) as error:
        return outcome.refused(str(error), 2)
    except OSError as error:
        return outcome.refused(os_errors.sentence(error), 2)
    if name == "config":
        return _list_settings(config)
    logging.set_verbosity(logging.WARNING)
    return outcome.on_all_hosts(work)


def _list_settings(config: "ml_collections.ConfigDict") -> int:
    """Prints all settings, then what is wrong with them; returns the exit status."""
    from stepjax.cli import config_table
    from stepjax.run import ranges

    print(config_table.table(config), end="", flush=True)
    wrong = ranges.wrong(config)
    return outcome.refused("\n".join(wrong), 2) if wrong else 0


def _run(name: str, config: "ml_collections.ConfigDict") -> None:
    from stepjax.cli import arguments, options

    if name in ("show", "report"):
        {"show": _show, "report": _report}[name](config)
        return
    outcome.say("starting JAX")
    if name == "plan":
        _plan(config)
        return
    if name == "check":
        from stepjax.run import check_device

        print(check_device.check(outcome.say))
        return
    _start()
    from stepjax import iterate

    workdir, redo = options.WORKDIR.value, options.REDO.value
    if name == "run" and options.DRY_RUN.value:
        _dry_run(config)
        return
    if name == "run":
        iterate.run(config, workdir, redo, options.PROFILE.value)
        return
    if name == "ablate":
        from stepjax import ablate

        seeds = [int(seed) for seed in options.SEEDS.value]
        ablate.ablate(config, workdir, seeds, options.ARMS.value)
        return
    number = arguments.number_of(name, config)
    from stepjax.run.run import Run

    looks, reads = name in ("eval", "solve", "export"), name == "export"
    traced = options.PROFILE.value
    run = Run(config, workdir, redo, keep=looks, locks=not reads, profile=traced)
    run.accept()
    if name == "sft":
        iterate.sft(run)
    elif name == "search":
        iterate.search(run, number)
    elif name == "dpo":
        iterate.dpo(run, number)
    elif name == "eval":
        _eval(run, number)
    elif name == "solve":
        _solve(run, number)
    else:
        _export(run, number)


def _show(config: "ml_collections.ConfigDict") -> None:
    """Prints problems of a model, or rows of training."""
    from stepjax.cli import arguments, options
    from stepjax.evaluation import show, show_data
    from stepjax.run import kind
    from stepjax.settings import from_config

    workdir = pathlib.Path(options.WORKDIR.value)
    number, is_newest = arguments.number_of("show", config), options.MODEL.value is None
    if options.DATA.value:
        text = show_data.show_data(
            workdir,
            from_config(config),
            source=options.DATA.value,
            number=None if is_newest else number,
            problem=options.PROBLEM.value,
            choose_randomly=options.RANDOM.value,
            count=options.COUNT.value,
        )
        print(text, end="")
        return
    if is_newest:
        number = show.newest_search(workdir, number)
    named = {"wrong": options.WRONG, "ties": options.TIES, "random": options.RANDOM}
    text = show.show(
        workdir,
        number,
        problem=options.PROBLEM.value,
        choice="".join(name for name, option in named.items() if option.value),
        count=options.COUNT.value,
        is_right=kind.choose(from_config(config), workdir / "data").is_right,
    )
    print(text, end="")


def _report(config: "ml_collections.ConfigDict") -> None:
    """Writes the page of a run, and says what is in it."""
    from stepjax.cli import options
    from stepjax.report import build
    from stepjax.run import kind
    from stepjax.settings import from_config

    workdir = pathlib.Path(options.WORKDIR.value)
    if options.MAP.value:
        _map(config)
    is_right = kind.choose(from_config(config), workdir / "data").is_right
    made = build.write(workdir, is_right, settings=config.to_dict())
    size = _bytes(made.path.stat().st_size)
    outcome.say(f"{made.path}: {size}, {made.problems:,} searched problems")
    if made.left_out:
        outcome.say(f"left out to keep it small: {made.left_out}")


def _map(config: "ml_collections.ConfigDict") -> None:
    """Makes the map of the data, or says why it is left out."""
    from stepjax.cli import arguments, options
    from stepjax.report import data_map

    if not data_map.is_possible():
        outcome.say(data_map.note(pathlib.Path(options.WORKDIR.value)))
        return
    outcome.say("starting JAX")
    _start()
    from stepjax.run.run import Run

    number = arguments.number_of("report", config)
    run = Run(config, options.WORKDIR.value, keep=True, locks=False)
    run.accept()
    data_map.make(run, number)


def _dry_run(config: "ml_collections.ConfigDict") -> None:
    """Prints what a run would work with; a new run directory is deleted again."""
    from stepjax.cli import options
    from stepjax.evaluation import dry_run
    from stepjax.lm import hosts
    from stepjax.run.run import Run

    workdir, redo = options.WORKDIR.value, options.REDO.value
    run = Run(config, workdir, redo, dry_run=True, measures=True)
    try:
        text = dry_run.dry_run(run)
    finally:
        run.monitor.close()
        run.dir.give_back()
    if hosts.first():
        print(text, end="")


def _start() -> None:
    """Starts JAX and the other hosts; from here on signals stop a run in order."""
    from stepjax.cli import options
    from stepjax.lm import hosts

    hosts.start(options.HOSTS.value, options.HOST_TIMEOUT.value, outcome.without_a_host)
    import jax

    count, kind = jax.device_count(), jax.devices()[0].device_kind
    named = f"{count} device{'s' if count > 1 else ''} ({kind})"
    outcome.say(f"JAX {jax.__version__} on {named}; loading the other libraries")
    from stepjax import iterate  # noqa: F401, the last import that takes long

    interrupts.listen(hosts.watch())


def _open_run(config: "ml_collections.ConfigDict") -> "Run":
    from stepjax.cli import options

    outcome.say("starting JAX")
    _start()
    from stepjax.run.run import Run

    run = Run(config, options.WORKDIR.value)
    run.accept()
    return run


def _eval(run: "Run", number: int) -> None:
    """Measures a model and prints what was found."""
    from stepjax.cli import options
    from stepjax.evaluation import benchmark_paths, second_opinion, stages, tables

    mode, named = options.MODE.value, benchmark_paths.paths(options.BENCHMARK.value)
    modes = options.MODES if mode == "all" else (mode,)
    results: list[pathlib.Path] = []
    measured = stages.evaluate(run, number, modes, named, on_result=results.append)
    several = len(named) > 1
    for benchmark, by_mode in measured.items():
        for mode, metrics in by_mode.items():
            answered = mode in ("greedy", "search") or benchmark != "test"
            if several and answered:
                continue  # one line below
            read = benchmark if answered else "the run's own data"
            read = "the run's own test" if read == "test" else read
            name = f"M{number} {mode}"
            rows = [{name: k, read: _rounded(v)} for k, v in metrics.items()]
            if rows:
                run.monitor.table("", rows)
    if several:
        for table in (tables.benchmarks, tables.judge_sets):
            if rows := table(f"M{number}", measured):
                run.monitor.table("", rows)
    if options.SECOND_OPINION.value:
        second_opinion.report_all(results, run.monitor)
    for mode in modes if options.MODE.value == "all" and "test" in named else ():
        if mode not in measured["test"]:
            run.tell(f"M{number} {mode}: does not apply to this run or model")


def _solve(run: "Run", number: int) -> None:
    """Solves problems with a model, and prints what was found."""
    from stepjax.cli import arguments, options
    from stepjax.evaluation import benchmark_paths, budgets, solve

    width, text = run.settings.search.width, options.PROBLEM.value
    asked = solve.choices(arguments.methods(), arguments.sample_counts(width))
    named = benchmark_paths.paths(options.BENCHMARK.value)
    for task in solve.tasks(run, named, text):
        budgets.report(run, number, task, solve.solve(run, number, task, asked))


def _rounded(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _export(run: "Run", number: int) -> None:
    """Writes a model as a Hugging Face folder, and says what was written."""
    from stepjax.cli import options
    from stepjax.lm import addresses, export, files, hosts, tokenizer
    from stepjax.run import base

    tokenizer = tokenizer.load(run.dir.path / "tokenizer")
    settings, out = run.settings, options.OUT.value
    shape = base.plain(run.model).config
    params = base.merged(run.settings, run.dir.path, run.model, run.params(number))
    lengths = (
        settings.train.row_length,
        settings.search.context_tokens,
        settings.judge.context_tokens,
    )
    same = {"stop_ids": tokenizer.stop_ids, "dtype": options.DTYPE.value}
    with files.named(out):
        export.save_hf(
            params,
            shape,
            out,
            tokenizer_directory=tokenizer.directory,
            bos_id=tokenizer.bos_id,
            pad_id=tokenizer.pad_id,
            context_length=max(lengths),  # of a random M0; another has its own
            prompts=dataclasses.asdict(run.codec.templates),
            **same,
        )
    verified = ""
    if options.VERIFY.value:
        shardings = run.shardings()
        verified = export.verify_hf(params, shape, out, shardings=shardings, **same)
    if hosts.first():
        asked = run.codec.templates.solve
        prompt = repr(asked)
        if run.codec.templates.chat == "template":
            prompt += " in the tokenizer's chat template"
        size, remote = "", addresses.is_address(out)
        if not remote:
            paths = pathlib.Path(out).rglob("*")
            size = f"{_bytes(sum(path.stat().st_size for path in paths))}, "
        outcome.say(f"M{number} → {out}, {size}{same['dtype']}, prompt: {prompt}")
        if verified:
            outcome.say(verified)
        if not remote and (warning := export.other_ids(out, tokenizer, asked)):
            outcome.say(warning)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{count} bytes"


def _plan(config: "ml_collections.ConfigDict") -> None:
    import jax

    from stepjax.cli import options

    jax.config.update("jax_platforms", "cpu")  # leaves an accelerator to others
    from stepjax.planning import plan
    from stepjax.settings import from_config

    settings, topology = from_config(config), options.TOPOLOGY.value
    stage, suggest = options.STAGE.value, options.SUGGEST.value
    if options.GPU.value:
        from stepjax.cli import arguments
        from stepjax.planning import card

        stages = plan.STAGES[:-1] if stage == "all" else (stage,)
        memory = arguments.card_bytes(options.GPU.value)
        text = card.plan(settings, memory, stages, suggest=suggest, say=outcome.say)
        print(text)
        return
    chosen = stage, options.UTILISATION.value, suggest
    print(plan.plan(settings, topology, *chosen, say=outcome.say))
