"""Control experiments: is it the judging that makes the model better?

Every arm starts from the same M1 and sees the same questions, and takes as many updates
in each iteration as self-judging did:

    self     the method: the model judges its own steps
    random   verdicts are coins
    oracle   verdicts are gold: an upper bound, not self-rewarding
    sft      more supervised fine-tuning, no preferences
    srlm     the judge rates whole solutions one by one (arXiv 2401.10020); its M1
             learns this from the same problems instead of comparing steps

and, where --arms names them, the judge of the method in other ways:

    frozen     M1 judges in all iterations, while the solver moves (judge.model)
    keep       every update of step-DPO also learns from EFT rows, with weight 1
               (judge.keep)
    pointwise  each step is judged alone; its M1 learns this from the same comparisons
               (judge.score)
    consistency, outcome  step-DPO also learns from pairs of explanations (judge.learn);
               the settings need judge.votes of 3 or more (outcome: of 2), which all
               arms then have

    DIR/seed_0/self  DIR/seed_0/random ...   run directories, see `stepjax.iterate`
    DIR/ablation.json  ablation.md  ablation.png
"""

import stepjax.lm  # noqa: F401, says what to install when something is missing

# isort: split
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from stepjax import iterate
from stepjax.evaluation import intervals, tables
from stepjax.lm import files, hosts
from stepjax.run import lock, paths, ranges, rundir

ARMS = ("self", "random", "oracle", "sft", "srlm")
# Compared only where they are named.
FURTHER = ("frozen", "keep", "pointwise", "consistency", "outcome")
_OWN_M1 = ("srlm", "pointwise")  # arms that do not begin at the M1 of "self"
_TITLES = {
    "self": "self-judge",
    "random": "random judge",
    "oracle": "oracle judge (gold)",
    "sft": "more SFT",
    "srlm": "SRLM (whole solutions)",
    "frozen": "frozen judge (M1)",
    "keep": "self-judge, kept with EFT rows",
    "pointwise": "self-judge, steps alone",
    "consistency": "self-judge, learns consistency",
    "outcome": "self-judge, learns from the gold",
}
_MEASURES = {  # part of `tables.results` and name of its metric
    "greedy": ("greedy", "accuracy"),
    "search": ("search", "accuracy"),
    "unseen": ("unseen", "accuracy"),
    "judge": ("judge", "accuracy"),
    "sampled": ("search", "judge_sampled"),
    "pairs_right": ("training", "pairs_right"),
}


def ablate(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    seeds: Sequence[int],
    arms: Sequence[str] = ARMS,
) -> str:
    """Runs the arms, or what is left of them, and returns the table.

    Args:
      config: settings of the method; `seed`, and what an arm changes, are set here.
      workdir: where run directories and results go.
      seeds: one for each repetition, all different.
      arms: some of `ARMS` and `FURTHER`; "self" always runs, before the other arms.

    Raises:
      ValueError: for unknown arms, seeds that repeat, the arm "srlm" in a run that
        makes its EFT rows, an arm that is the method itself already, or a self-judge
        without pairs.
    """
    unknown = sorted(set(arms) - {*ARMS, *FURTHER})
    if unknown or len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(
            f"arms={list(arms)}, seeds={list(seeds)}; expected arms of "
            f"{(*ARMS, *FURTHER)} and different seeds."
        )
    if config.data.make_eft and "srlm" in arms:
        raise ValueError(
            f"arms={list(arms)} with data.make_eft=True; expected arms without 'srlm', "
            "because the teacher of such a run compares steps, and SRLM learns from "
            "ratings of whole solutions. Use --arms=self,random,oracle,sft."
        )
    equal = [arm for arm in FURTHER if arm in arms and _is_arm(config, arm)]
    if equal:
        raise ValueError(
            f"arms={list(arms)}; expected arms without {equal[0]!r}, because the "
            "settings are those of this arm already, so it would be the arm 'self'."
        )
    arms = [arm for arm in (*ARMS, *FURTHER) if arm in arms or arm == "self"]
    # Before the first of them takes its time. How many updates the arm "self" will make
    # is not known yet: more than those of the warm-up, as far as can be said now.
    updates = (config.dpo.optimizer.warmup_steps + 1,) * config.iterations
    for arm in arms:
        ranges.check(arm_config(config, arm, seeds[0], updates))
    if wrong := paths.no_run("workdir", os.fspath(workdir)):
        raise ValueError(wrong)  # `Path` would make gs:/x of gs://x
    folder = pathlib.Path(workdir).expanduser()
    for seed in seeds:
        own = folder / f"seed_{seed}" / "self"
        _say(f"seed {seed}: {_TITLES['self']}, {own}")
        iterate.run(arm_config(config, "self", seed), own)
        updates = _updates(own, config.iterations)
        for arm in arms[1:]:
            settings, path = arm_config(config, arm, seed, updates), own.parent / arm
            _say(f"seed {seed}: {_TITLES[arm]}, {path}")
            if arm not in _OWN_M1:
                if hosts.first():
                    lock.take(path)  # `run` releases it
                adopt_m1(rundir.RunDirectory(settings, path), own)
            iterate.run(settings, path)
    measured = {
        arm: [
            _measured(folder / f"seed_{seed}" / arm, config.iterations + 1)
            for seed in seeds
        ]
        for arm in arms
    }
    text = table(measured)
    if hosts.first():
        files.write_json(folder / "ablation.json", {"seeds": seeds, "arms": measured})
        with files.replacing(folder / "ablation.md") as file:
            file.write(text)
        plot(measured, folder / "ablation.png")
        print(text)
    return text


def adopt_m1(directory: rundir.RunDirectory, other: pathlib.Path) -> None:
    """Takes M1, and what was measured of M0 and M1, from a run on the same data.

    If that run made its EFT rows itself, they are copied with DIR/init, without the
    parameters of policy and PRM, which M1 does not need.
    Whether the other data are the same is checked when M1 is used: its manifest
    holds their digests.

    Args:
      directory: of the run that takes them.
      other: the other run directory; its M1 is finished.
    """
    if hosts.first() and not (directory.model(1) / "manifest.json").exists():
        _adopt_m1(directory, other)
    hosts.barrier(f"M1 adopted by {directory.path}")


def _adopt_m1(directory: rundir.RunDirectory, other: pathlib.Path) -> None:
    folder = directory.path
    (folder / "eval").mkdir(exist_ok=True)
    for number in (0, 1):
        for path in sorted((other / "eval").glob(f"M{number}_*.json*")):
            shutil.copy(path, folder / "eval")
    if (other / "init").exists():
        shutil.copytree(
            other / "init",
            folder / "init",
            ignore=shutil.ignore_patterns("params"),
            dirs_exist_ok=True,
        )
        (folder / "data").mkdir(exist_ok=True)
        stages = [files.read_json(path) for path in (other / "init").glob("*.json")]
        for name in {name for stage in stages for name in stage["files"]}:
            if name.startswith("../data/"):
                shutil.copy(other / "init" / name, folder / "data")
    temporary = folder / "M1.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    shutil.copytree(other / "M1" / "params", temporary / "params")
    shutil.copy(other / "M1" / "manifest.json", temporary)
    shutil.rmtree(directory.model(1), ignore_errors=True)
    temporary.rename(directory.model(1))


def _say(text: str) -> None:
    """Says which run comes next; the first host does."""
    if hosts.first():
        print(text, file=sys.stderr, flush=True)


def arm_config(
    config: ml_collections.ConfigDict,
    arm: str,
    seed: int,
    updates: tuple[int, ...] = (),
) -> ml_collections.ConfigDict:
    """Returns the settings of an arm.

    Args:
      config: settings of the method.
      arm: one of `ARMS` or `FURTHER`.
      seed: of the repetition.
      updates: updates of each iteration; () lets the pairs decide.
    """
    c = config.copy_and_resolve_references()
    c.seed = seed
    c.dpo.updates = updates or c.dpo.updates
    if arm in ("random", "oracle"):
        c.judge.by, c.judge.model, c.judge.learn = arm, "", "none"
    elif arm == "sft":
        c.improve_by = "sft"
    elif arm == "srlm":
        c.judge.kind = "ratings"
        c.search.on_tie, c.pairs.best_beats_all = "append", False
        # What ratings do not have.
        c.search.on_reject, c.judge.score = "append", "sum"
        c.judge.value, c.judge.votes, c.judge.tie = "hard", 1, False
        c.judge.mode, c.judge.schedule, c.judge.learn = "generate", "full", "none"
    elif arm == "frozen":
        c.judge.model = "M1"
    elif arm == "keep":
        c.judge.keep = 1.0
    elif arm == "pointwise":
        c.judge.score, c.judge.schedule, c.judge.tie = "pointwise", "full", False
        shares = c.judge.value == "hard" and c.judge.votes > 1  # of votes, 0 to 1
        c.pairs.min_margin = 0.0 if shares else min(c.pairs.min_margin, 1.0)
    elif arm in ("consistency", "outcome"):
        c.judge.learn = arm
    return c


def _is_arm(config: ml_collections.ConfigDict, arm: str) -> bool:
    """Whether the method has the judge of one of the `FURTHER` arms already."""
    judge = config.judge
    settings = {"frozen": judge.model, "keep": judge.keep}
    return bool(settings.get(arm, arm in (judge.score, judge.learn)))


def _updates(run: pathlib.Path, iterations: int) -> tuple[int, ...]:
    numbers = range(2, iterations + 2)
    manifests = [files.read_json(run / f"M{n}" / "manifest.json") for n in numbers]
    updates = tuple(manifest["counts"]["updates"] for manifest in manifests)
    if 0 in updates:
        raise ValueError(
            f"{run}: updates of the iterations are {updates}; expected pairs in each, "
            "or there is nothing to compare. Ask more questions."
        )
    return updates


def _measured(run: pathlib.Path, models: int) -> dict[str, list[float | None]]:
    """Returns measure → its values for M1 ... M`models`."""
    parts = [tables.results(run, number) for number in range(1, models + 1)]
    return {
        measure: [part.get(mode, {}).get("metrics", {}).get(name) for part in parts]
        for measure, (mode, name) in _MEASURES.items()
    }


def table(measured: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the table of all arms, in Markdown: means over seeds, in percent.

    Args:
      measured: arm → for each seed, measure → values for M1, M2, ...
    """
    models = len(measured["self"][0]["greedy"])
    names = [f"M{number}" for number in range(1, models + 1)]
    last = names[-1]
    header = ["arm", *(f"greedy {name}" for name in names)]
    header += [f"gain M1 → {last} [95 %]", "gain of each seed"]
    oracle = _gains(measured["oracle"]) if "oracle" in measured else None
    header += [] if oracle is None else ["of the oracle's gain [95 %]"]
    header += [f"search {last}", f"unseen M1 → {last}", f"judge M1 → {last}"]
    header += [f"sampled M1 → {last}", "pairs right"]
    lines = [header, ["---"] * len(header)]
    for arm, runs in measured.items():
        greedy = np.array([run["greedy"] for run in runs])  # [seeds, models]
        gains = _gains(runs)
        line = [_TITLES[arm], *(f"{100 * x:.1f}" for x in greedy.mean(0))]
        line += [_mean_gain(gains)]
        line += [" ".join(f"{gain:+.1f}" for gain in gains)]
        line += [] if oracle is None else [_share(gains, oracle)]
        line += [_mean(runs, "search", -1)]
        line += [
            f"{_mean(runs, name, 0)} → {_mean(runs, name, -1)}"
            for name in ("unseen", "judge", "sampled")
        ]
        line += [_mean(runs, "pairs_right", slice(1, None))]
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean_gain(gains: np.ndarray) -> str:
    """Returns the mean with its interval; one seed has none."""
    mean, low, high = intervals.mean_and_interval(gains)
    return f"{mean:+.1f}" + (f" [{low:+.1f}, {high:+.1f}]" if len(gains) > 1 else "")


def _gains(runs: Sequence[dict]) -> np.ndarray:
    """Returns how much greedy accuracy grew in each seed, in points."""
    greedy = np.array([run["greedy"] for run in runs])  # [seeds, models]
    return 100 * (greedy[:, -1] - greedy[:, 0])


def _share(gains: Sequence[float], oracle: Sequence[float]) -> str:
    """Returns which part of the oracle's gain an arm reaches; "-" for no such gain."""
    share, low, high = intervals.ratio_of_means(gains, oracle)
    bounds = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
    return f"{share:.2f}{bounds}" if math.isfinite(share) else "-"


def _mean(runs: Sequence[dict], name: str, at: int | slice) -> str:
    values = [np.atleast_1d(np.array(run[name], object)[at]) for run in runs]
    known = [float(x) for x in np.concatenate(values) if x is not None]
    return f"{100 * np.mean(known):.1f}" if known else "-"


def plot(measured: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    """Draws greedy accuracy over the models: means with intervals, and every seed."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (arm, runs) in enumerate(measured.items()):
        greedy = 100 * np.array([run["greedy"] for run in runs])  # [seeds, models]
        at = np.arange(1, greedy.shape[1] + 1)
        color = f"C{number}"
        for seed in greedy:
            axes.plot(at, seed, color=color, alpha=0.25, linewidth=0.8)
        mean = greedy.mean(0)
        bars = None
        if len(runs) > 1:  # t-intervals may end below 0 or above 100 %
            ends = [intervals.mean_and_interval(column)[1:] for column in greedy.T]
            bars = np.abs(np.clip(np.transpose(ends), 0, 100) - mean)
        # So that bars do not overlap.
        offset = 0.04 * (number - (len(measured) - 1) / 2)
        axes.errorbar(
            at + offset,
            mean,
            bars,
            color=color,
            marker="o",
            capsize=3,
            label=_TITLES[arm],
        )
    axes.set_xticks(at, [f"M{n}" for n in at])
    axes.set_ylabel("greedy accuracy, %")
    axes.set_title(
        f"mean and 95 % interval over {len(measured['self'])} seeds", size=10
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
