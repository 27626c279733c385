"""What the command line is: its commands, the options of each, and help in words.

This file imports nothing that is not in the standard library, so that help is there
before anything is installed or loaded.
"""

import textwrap
from typing import NamedTuple

OPTIONS = {
    "config": (
        "FILE",
        "settings: a Python file with get_config(), or the name of a shipped one; "
        "FILE:TEXT hands TEXT to get_config. Without it, the config.json of --workdir "
        "is taken. --config.NAME=VALUE changes one setting, also on an existing run; "
        "`stepjax config` lists all of them",
    ),
    "workdir": ("DIR", "the run directory"),
    "model": ("M1", "which model, M1 or 1; the newest finished one when left out"),
    "hosts": ("1", "how many hosts run this command together, each of them"),
    "host-timeout": (
        "300",
        "with --hosts: seconds that hosts wait for one that has not started, or that "
        "no longer gives a sign of life. Then they name it and end",
    ),
    "redo": (
        "STAGE",
        "a stage whose settings have changed, or a model such as M1 that a lost or "
        "damaged one has come out different: deletes it and all that come after it, "
        "as far as that is so, and makes them again. Stages, in their order: prepare, "
        "policy, rollouts, prm, mcts, eft, sft, search, dpo. Nothing is deleted when "
        "all was made with these settings and from what is there, so the same command "
        "can be repeated after a kill",
    ),
    "profile": (
        None,
        "traces a few updates or turns of each training and search, for xprof or "
        "TensorBoard, in DIR/profile",
    ),
    "dry-run": (
        None,
        "prepares the data, prints the sizes of data, prompts and model, a row of "
        "training as tokens and mask, a sampled step and a judgment, and stops; a new "
        "--workdir is deleted again",
    ),
    "data": (
        None,
        "rows of training in place of problems: ift, eft or pairs, as tokens with the "
        "mask of the loss",
    ),
    "problem": (
        "TEXT",
        "show: the id of the one problem or row to show; solve: a problem",
    ),
    "wrong": (None, "problems with a wrong step or a wrong answer"),
    "ties": (None, "problems with a step whose candidates had equal scores"),
    "random": (None, "problems or rows drawn at random"),
    "n": ("3", "how many of them, at most"),
    "mode": (
        "all",
        "what to measure: greedy (accuracy), search (accuracy of test-time search), "
        "judge (accuracy on held-out judgments, or on --benchmark=FILE of PRM800K or "
        "ProcessBench), unseen (problems of unseen steps), "
        "training (the pairs that the model was trained on), or all that apply",
    ),
    "benchmark": (
        "test",
        "'test' (the run's own data), files of problems or of judged steps, or folders "
        "of such files, with commas between them: a.jsonl,b.csv,folder",
    ),
    "second-opinion": (
        None,
        "also asks math-verify (the extra `math-verify`) about every answer, and lists "
        "those on which it disagrees; no result changes",
    ),
    "method": (
        "step_search",
        "how to solve, one or more of greedy, majority, weighted, best_of_n, beam, "
        "dvts and step_search, with commas between them, or all",
    ),
    "samples": (
        "1,2,4,8",
        "how much a method may use, one or more numbers: solutions (majority, "
        "weighted, best_of_n), beams (beam), searches (dvts) or candidates per step "
        "(step_search). search.width when left out",
    ),
    "out": ("DIR", "the folder to write, new or empty"),
    "dtype": ("float32", "type of the saved weights, float32 or bfloat16"),
    "verify": (None, "reads the written folder again and compares it"),
    "seeds": ("0,1,2", "seeds of the repetitions"),
    "arms": (
        "self,random,oracle,sft,srlm",
        "what to compare; also frozen, keep, pointwise, consistency, outcome",
    ),
    "map": (
        None,
        "adds a map of the data: t-SNE of prompts and responses, by the newest model; "
        "needs scikit-learn, which the extra `report` brings",
    ),
    "topology": ("v5p-16", "a TPU slice, as v5p-16 or v5p:2x2x2"),
    "gpu": (
        "80GB",
        "instead of --topology: the memory of one GPU, such as 24GB, 40GB or 80GB; the "
        "plan is then arithmetic, in seconds, and nothing is compiled",
    ),
    "stage": ("all", "sft, dpo, search or all"),
    "utilisation": ("0.4", "share of the peak that is reached"),
    "suggest": (
        None,
        "looks for the smallest slice that fits, or with --gpu for settings that do; "
        "--nosuggest leaves that out",
    ),
}


class Command(NamedTuple):
    """One command.

    Attributes:
      summary: a line of the list of commands.
      options: those that it reads, keys of `OPTIONS`.
      needed: those of them that must be given.
      text: more about it.
    """

    summary: str
    options: tuple[str, ...]
    needed: tuple[str, ...] = ("workdir",)
    text: str = ""


_HOSTS = ("config", "workdir", "hosts", "host-timeout")
_RUN = (*_HOSTS, "redo")
_CHOICES = ("problem", "wrong", "ties", "random")
COMMANDS = {
    "run": Command(
        "the whole loop M0 → M1 → ...; the same command continues after a kill",
        (*_RUN, "profile", "dry-run"),
        text="A finished stage is not repeated. On a finished run, "
        "--config.iterations=N with a larger N makes further models.",
    ),
    "sft": Command("M0 → M1", (*_RUN, "profile")),
    "search": Command(
        "lets --model search its questions; writes search.jsonl and pairs.jsonl",
        (*_RUN, "model", "profile"),
    ),
    "dpo": Command(
        "--model → the next model, by its pairs", (*_RUN, "model", "profile")
    ),
    "eval": Command(
        "measures --model",
        (*_RUN, "model", "mode", "benchmark", "second-opinion"),
        text="Results are kept in DIR/eval. Those of a file of --benchmark are named "
        "by the file and its digest; an edited file is measured anew. All files are "
        "read before the model is loaded. Other settings than those of the run, such "
        "as --config.eval.max_tokens=512, hold for this command only, and its results "
        "have names of their own.",
    ),
    "solve": Command(
        "solves problems with --model by methods that spend more tokens",
        (*_HOSTS, "model", "method", "samples", "benchmark", "problem"),
        text="Solves the run's own test problems, files of problems, with or without "
        "answers, or the one problem of --problem. Every method is measured with every "
        "number of --samples. Prints what each gets right and how many tokens it "
        "takes; where answers are known, a table at equal budgets and a plot are "
        "written too. Solutions are kept in DIR/eval as JSON lines. The same command "
        "goes on after a kill. --config.eval.search_count=100 takes the first 100 "
        "problems. The judge is that of the run, by default the model itself.",
    ),
    "show": Command(
        "shows problems of --model: candidates, scores, verdicts",
        ("config", "workdir", "model", "data", *_CHOICES, "n"),
        text="Shows the search of its questions, by default of the newest model that "
        "has searched. For a model that has searched no questions, such as the last "
        "one, it shows the searches of its evaluation, and without these its answers "
        "to test problems. Candidates are marked right or wrong where a world "
        "(data.world) knows it. The first problems are shown unless --problem, "
        "--wrong, --ties or --random says otherwise. With --data it shows rows that "
        "training takes instead, as tokens with the mask of the loss.",
    ),
    "report": Command(
        "writes DIR/report/index.html: charts, tables, every judged step",
        ("config", "workdir", "map"),
        text="The page is one file that opens from disk and loads nothing. It holds "
        "what is finished, so it can be written while a run is going on. It has at "
        "most 25 MB; where explanations were left out for that, it says so.",
    ),
    "export": Command(
        "writes --model to --out as a Hugging Face folder",
        (*_HOSTS, "model", "out", "dtype", "verify"),
        ("workdir", "out"),
    ),
    "ablate": Command(
        "the loop with its controls: one table and a figure",
        (*_HOSTS, "seeds", "arms"),
        ("workdir", "config"),
        text="Runs the loop once per arm and seed: 15 runs by default. "
        "--arms=self,random --seeds=21 is a first taste.",
    ),
    "init-data": Command(
        "data for M1 from public data sets; `stepjax init-data` says more", ()
    ),
    "plan": Command(
        "the memory that a run needs on a TPU slice or a GPU, without either",
        ("config", "topology", "gpu", "stage", "utilisation", "suggest"),
        ("config",),
    ),
    "check": Command(
        "whether this machine's devices compute what a CPU computes; a minute",
        (),
        (),
        text="Runs a tiny model on all devices: forest rows against plain rows, a "
        "draw, two updates of step-DPO, and a save. Prints versions, devices, memory "
        "and the differences from numbers that were stored on a CPU. It needs no "
        "settings, no data and no weights. The exit status is 1 if a difference is "
        "more than rounding.",
    ),
    "config": Command(
        "lists every setting, its value and what it means",
        ("config", "workdir"),
        (),
        text="Settings that --config, --workdir or --config.NAME=VALUE change are "
        "marked with *.",
    ),
}

_HEAD = """usage: stepjax COMMAND --config=FILE --workdir=DIR [--config.NAME=VALUE ...]
"""
_TAIL = """
`stepjax COMMAND --help` says more about one of them, `stepjax --version` the version.
Commands on an existing --workdir take its config.json when --config is left out.
On a slice of several hosts, every host runs the same command with --hosts=N.
"""


def usage() -> str:
    """Returns the list of commands."""
    names = "".join(f"  {name:10}{c.summary}\n" for name, c in COMMANDS.items())
    return f"{_HEAD}\n{names}{_TAIL}"


def of(name: str) -> str:
    """Returns the help of one command."""
    command = COMMANDS[name]
    needed = [_option(option) for option in command.needed]
    usage = " ".join(["stepjax", name, *needed, "[options]"])
    lines = [f"usage: {usage}", ""]
    if "hosts" in command.options and "config" not in command.needed:
        new = usage.replace(name, f"{name} {_option('config')}", 1)
        lines = [f"usage: {new}", f"       {usage}", ""]
        lines += ["The second form takes the settings of a run that has begun.", ""]
    lines += [f"{name}: {command.summary}.", *_wrapped(command.text, ""), ""]
    for option in command.options:
        lines.append(f"  {_option(option)}")
        lines += _wrapped(OPTIONS[option][1], "      ")
    return "\n".join(lines) + "\n"


def _option(name: str) -> str:
    value = OPTIONS[name][0]
    return f"--{name}" if value is None else f"--{name}={value}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        80,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
