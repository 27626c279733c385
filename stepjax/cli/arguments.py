"""What a command was told, checked before anything takes time."""

import pathlib
import re
import tempfile
from collections.abc import Iterator

import ml_collections
from absl import flags

from stepjax import own_import
from stepjax.cli import help, options
from stepjax.config import default
from stepjax.evaluation import benchmark_paths, second_opinion
from stepjax.lm import addresses
from stepjax.own_files import did_you_mean
from stepjax.run import missing_files, paths, ranges, redo

# Commands that may begin a run.
WORKING = ("run", "sft", "search", "dpo", "eval", "solve", "ablate")

# Methods of `stepjax solve`, see `stepjax.evaluation.methods`.
METHODS = (
    *("greedy", "majority", "weighted", "best_of_n"),
    *("beam", "dvts", "step_search"),
)

# Arms of `stepjax ablate` that are compared only where they are named.
_FURTHER_ARMS = ("frozen", "keep", "pointwise", "consistency", "outcome")


def check_options(name: str) -> None:
    """Raises ValueError for options that a command lacks, or does not read."""
    command = help.COMMANDS[name]
    texts = {
        "config": "a file of settings, or the name of a shipped one",
        "workdir": "the run directory",
        "out": "the folder to write",
    }
    for option in command.needed:
        if not flags.FLAGS[option].value:
            what = texts.get(option, help.OPTIONS[option][1].partition(": ")[0])
            raise ValueError(f"--{option} is missing; expected {what}.")
    unread = [
        f"--{option}"
        for option in help.OPTIONS
        if flags.FLAGS[option].present and option not in command.options
    ]
    if unread:
        known = ", ".join(f"--{option}" for option in command.options)
        raise ValueError(
            f"{', '.join(unread)}: `stepjax {name}` does not read this; expected only "
            f"{known}."
        )
    chosen = [o for o in ("problem", "wrong", "ties", "random") if flags.FLAGS[o].value]
    if len(chosen) > 1:
        raise ValueError(
            f"--{' and --'.join(chosen)} are given together; expected at most one of "
            "them."
        )
    if options.DATA.value and chosen and chosen[0] in ("wrong", "ties"):
        raise ValueError(
            f"--data={options.DATA.value} and --{chosen[0]} are given together; "
            "expected --data with --problem or --random, because rows of training are "
            "not searched."
        )
    if options.DATA.value in ("ift", "eft") and options.MODEL.value is not None:
        raise ValueError(
            f"--data={options.DATA.value} and --model={options.MODEL.value} are given "
            "together; expected --model with --data=pairs only, because all models of "
            "a run have the same rows of IFT and EFT. Leave --model out."
        )
    if name == "plan":
        _check_hardware()
    if name == "export":
        _check_out()
    if name == "solve":
        _check_solve()
    if name != "eval":
        return
    mode, named = options.MODE.value, options.BENCHMARK.value
    if named != ["test"] and mode in ("unseen", "training"):
        raise ValueError(
            f"--mode={mode} does not read --benchmark; expected --mode=greedy, search, "
            "judge or all that apply to a file with it."
        )
    benchmark_paths.paths(named)
    if options.SECOND_OPINION.value:
        second_opinion.check()
        if mode not in ("greedy", "search", "all"):
            raise ValueError(
                f"--second-opinion with --mode={mode}, which has no final answers; "
                "expected --mode=greedy, search or all."
            )


def methods() -> list[str]:
    """Returns the methods of --method."""
    given = options.METHOD.value
    return list(METHODS) if given == ["all"] else given


def sample_counts(width: int) -> list[int]:
    """Returns the numbers of --samples; `width` when it is left out."""
    given = options.SAMPLES.value
    return [width] if given is None else [int(text) for text in given]


def _check_solve() -> None:
    """Raises ValueError for methods, numbers or problems that cannot be solved with."""
    chosen, known = methods(), [*METHODS, "all"]
    hints = [did_you_mean(name, known) for name in chosen if name not in METHODS]
    if hints or not chosen:
        raise ValueError(
            f"--method={','.join(chosen)}; expected one or more of "
            f"{','.join(METHODS)}, or all{''.join(hints)}."
        )
    given = options.SAMPLES.value
    good = (
        given is None
        or given
        and all(re.fullmatch("[1-9][0-9]{0,3}", x) for x in given)
    )
    if not good:
        raise ValueError(
            f"--samples={','.join(given)}; expected whole numbers from 1 to 9999, with "
            "commas between them."
        )
    if given and set(given) == {"1"} and set(chosen) == {"step_search"}:
        raise ValueError(
            "--samples=1 with --method=step_search; expected 2 or more, because this "
            "search compares that many candidates for a step."
        )
    if flags.FLAGS["problem"].present and not options.PROBLEM.value.strip():
        raise ValueError("--problem is empty; expected the text of a problem.")
    if options.PROBLEM.value and flags.FLAGS["benchmark"].present:
        raise ValueError(
            "--problem and --benchmark are given together; expected one of them."
        )
    benchmark_paths.paths(options.BENCHMARK.value)


def _check_hardware() -> None:
    """Raises ValueError unless a plan is asked for a TPU slice or for one card."""
    topology, gpu = options.TOPOLOGY.value, options.GPU.value
    if topology and gpu:
        raise ValueError(
            "--topology and --gpu are given together; expected one of them."
        )
    if gpu:
        card_bytes(gpu)
    elif not topology:
        raise ValueError(
            "--topology is missing; expected a TPU slice, as v5p-16 or v5p:2x2x2, or "
            "--gpu with the memory of one card, as 80GB."
        )


def card_bytes(name: str) -> int:
    """Reads the memory of a card, such as "80GB"; returns bytes.

    Makers write GB and mean 2^30 bytes.

    Raises:
      ValueError: for anything else.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,3})\s*(GB|GiB)?", name, re.IGNORECASE)
    if not found:
        raise ValueError(
            f"--gpu={name!r}; expected the memory of one card, such as 24GB, 40GB or "
            "80GB."
        )
    return int(found[1]) * 2**30


def _wrong_values() -> Iterator[str]:
    """Yields a sentence about every option whose value no command can read."""
    given = ",".join(options.ARMS.value)
    known = [*help.OPTIONS["arms"][0].split(","), *_FURTHER_ARMS]
    arms = options.ARMS.value
    hints = [did_you_mean(arm, known) for arm in arms if arm not in known]
    if hints or not 0 < len(set(arms)) == len(arms):
        yield (
            f"--arms={given}; expected one or more of {','.join(known)}, all different"
            f"{''.join(hints)}."
        )
    seeds = options.SEEDS.value
    good = seeds and all(s.isascii() and s.isdigit() and len(s) < 10 for s in seeds)
    if not good or len(set(map(int, seeds))) < len(seeds):
        yield (
            f"--seeds={','.join(seeds)}; expected whole numbers from 0, all different, "
            "with commas between them."
        )
    named = options.REDO.value
    if named and named not in redo.DEPENDS and not redo.model_number(named):
        yield redo.no_stage(named)
    share = options.UTILISATION.value
    if not 0 < share <= 1:
        yield f"--utilisation={share:g}; expected above 0 and at most 1, such as 0.4."


def settings(name: str) -> ml_collections.ConfigDict | None:
    """Returns the settings of --config, or of the run directory, checked.

    Raises:
      ValueError: with a line about each setting and each option that cannot work.
    """
    if name == "check":
        return None
    if address := paths.no_run("--workdir", options.WORKDIR.value or ""):
        raise ValueError(address)
    wrong = list(_wrong_values())
    if name in ("show", "report") and (missing := _no_run()):
        raise ValueError(missing)
    if options.CONFIG.value is None:
        if name == "config":
            return default()
        if name == "init-data" and not options.WORKDIR.value:
            return None
        wrong.append(f"{_no_run()} A new run needs --config=FILE.")
        raise ValueError("\n".join(wrong))
    config = paths.expanded(options.CONFIG.value)  # raises if it was not loaded
    if name == "config":
        return config
    wrong += ranges.wrong(config)
    workdir = options.WORKDIR.value
    begun = workdir and (pathlib.Path(workdir) / "data" / "manifest.json").exists()
    reads = not begun or options.REDO.value == "prepare"
    if name in WORKING and reads:
        wrong += missing_files.missing_files(config)
    if name in WORKING and options.HOSTS.value == 1:
        # With several hosts, a module that uses JAX must not come before `hosts.start`;
        # there `Run` looks.
        wrong += own_import.wrong(config.judge.by, config.search.propose_by)
    if wrong:
        raise ValueError("\n".join(wrong))
    if name in ("run", "ablate"):
        benchmark_paths.of_settings(config.eval.benchmarks)
    return config


def _no_run() -> str:
    """Returns why --workdir holds no run, in a sentence; "" if it holds one."""
    folder = pathlib.Path(options.WORKDIR.value)
    expected = "expected the --workdir of a run that has begun"
    if not folder.is_dir():
        return f"--workdir={folder}: there is no such folder; {expected}."
    if (folder / "config.json").exists():
        return ""
    if any(folder.glob("M*/manifest.json")):
        return (
            f"--workdir={folder}: its config.json is gone; expected the settings of "
            "the run. `stepjax run` with these settings writes it again."
        )
    made = [*folder.glob("*/data/manifest.json")]
    made += folder.glob("*/*/data/manifest.json")  # of `stepjax ablate`
    runs = sorted(str(path.parents[1].relative_to(folder)) for path in made)
    hint = f" Runs in it: {', '.join(runs[:5])}." if runs else ""
    return (
        f"--workdir={folder}: this folder holds no run, because there is no "
        f"config.json in it; {expected}.{hint}"
    )


def _check_out() -> None:
    """Looks whether --out can be written, before a model is loaded.

    Raises:
      ValueError: for a place that cannot be written.
      ImportError: for object storage whose package is not installed.
    """
    out = options.OUT.value
    if addresses.is_unreachable(out):
        raise ValueError(
            f"--out={out}: this is an address that nothing can be written to; expected "
            "a folder, or object storage: gs://, s3:// or az://."
        )
    if addresses.is_address(out):
        import fsspec  # slow to import, and only needed here

        fsspec.get_filesystem_class(out.partition(":")[0])
        return
    folder = pathlib.Path(out).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--out={out} exists and is not empty; expected a new or an empty folder. "
            "Choose another one or remove it first."
        )
    while not folder.exists():
        folder = folder.parent
    try:
        tempfile.TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        raise ValueError(
            f"--out={out}: nothing can be written in {folder} ({error.strerror}); "
            "expected a folder in which files can be made."
        ) from error


def check_models(name: str, config: ml_collections.ConfigDict) -> None:
    """Finds the model of --model, before anything takes time.

    Raises:
      ValueError: for a model that is not there, or that a command does not take.
    """
    number, folder = number_of(name, config), pathlib.Path(options.WORKDIR.value)
    mode = options.MODE.value
    if name != "eval" or mode == "all":
        return
    begun = (folder / "data" / "manifest.json").exists()
    pairs = folder / f"M{number - 1}" / "pairs.jsonl"
    if mode == "unseen" and begun and not (folder / "data" / "unseen.jsonl").exists():
        raise ValueError(
            f"--mode=unseen: the data of {folder} have no problems of unseen steps "
            "(data.unseen_blocks or data.unseen_results); expected another mode."
        )
    if mode == "training" and (number < 2 or not pairs.exists()):
        raise ValueError(
            f"--mode=training: M{number} was not trained on pairs; expected a model "
            f"that was, from M2 on ({pairs.name} is in the folder of the model before)."
        )


def number_of(name: str, config: ml_collections.ConfigDict) -> int:
    """Returns the number of --model, or of the newest one, after looking for it."""
    if name in ("run", "sft"):
        return 1
    folder, asked = pathlib.Path(options.WORKDIR.value), options.MODEL.value
    made = [path.parent.name[1:] for path in folder.glob("M*/manifest.json")]
    newest = max((int(text) for text in made if text.isdecimal()), default=0)
    if asked is None:
        asked = f"M{newest}"
        if name in ("search", "dpo") and newest > config.iterations:
            raise ValueError(
                f"M{newest} is the last model of {config.iterations} iterations; "
                f"expected a larger number to go on: add --config.iterations={newest}."
            )
    digits = asked.upper().removeprefix("M")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise ValueError(f"--model={asked!r}; expected M0, M1, ... or 0, 1, ...")
    number, last = int(digits), config.iterations
    asked = f"M{number}"
    low, high = (1, last) if name in ("search", "dpo") else (0, max(last + 1, newest))
    if not low <= number <= high:
        raise ValueError(
            f"--model={asked}; expected M{low} to M{high} for `stepjax {name}` with "
            f"iterations={last}."
        )
    manifest = folder / asked / "manifest.json"
    if number and not manifest.exists():
        there = "" if folder.exists() else f" There is no folder {folder}."
        raise ValueError(
            f"--model={asked}: {manifest} is missing; expected a finished model."
            f"{there} Run `stepjax run` on the same --workdir first."
        )
    return number
