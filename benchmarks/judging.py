"""How well each way to judge chooses the next step, beside what it costs: a replay.

    python benchmarks/judging.py --workdir=RUN --model=M1 [--expansions=400]
        [--votes=5] [--temperature=1.0] [--pointwise=RUN2]

RUN is a run directory whose search by the model is finished (M1/search.jsonl);
give the script a copy, because opening a run may write to its log. The candidates of
the search's first expansions are judged again by the same model, those that hold a
right and a wrong one, as far as the run's data can tell. A way to judge is how often
it is asked (one order of each pair or both), whether it explains, how many explanations
it writes, and what a verdict counts. With `--pointwise`, the model of the same name in
RUN2, which learned with judge.score="pointwise", judges the same candidates alone.

"chosen" is the share of expansions whose best step is right. With a coin as the judge
it would be "by chance". "+/-" counts the expansions that this way gets right and the
paper's (hard verdicts of both orders, one explanation, greedy) does not, and the other
way round. "verdicts" is the share of right ones among calls that hold a right and a
wrong step. Calls and written tokens are means per expansion.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stepjax import config, judge, pointwise, records, trajectory
from stepjax.evaluation import diagnose, intervals
from stepjax.run import config_json, judges, kind
from stepjax.run.run import Run
from stepjax.search import best_and_worst, request
from stepjax.trajectory import Expansion, State, Verdict

_ALONE = pointwise.appraisals()


class Case(NamedTuple):
    """An expansion with a right and a wrong candidate.

    Attributes:
      before: the search's question and steps before it.
      made: the expansion.
      right: whether each candidate is right.
    """

    before: State
    made: Expansion
    right: list[bool]


def main() -> None:
    """Judges the candidates in all ways and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, required=True, help="RUN")
    add("--model", default="M1", help="that searched (%(default)s)")
    add("--expansions", type=int, default=400, help="at most (%(default)s)")
    add("--votes", type=int, default=5, help="drawn per call (%(default)s)")
    add("--temperature", type=float, default=1.0, help="of votes (%(default)s)")
    add("--pointwise", type=pathlib.Path, help="RUN2")
    options = parser.parse_args()
    if wrong := _wrong(options):
        parser.error(wrong)
    number = int(options.model.removeprefix("M"))
    run = _open(options.workdir)
    found = list(itertools.islice(_cases(run, number), options.expansions))
    if not found:
        parser.error(f"no expansion of {options.workdir} by M{number} has both kinds.")
    greedy = {"temperature": 0.0, "votes": 1}
    drawn = {"temperature": options.temperature, "votes": options.votes}
    explained = _judged(run, number, found, mode="generate", **greedy)
    tokens = run.codec.tokenizer.encode_line
    print(
        f"{options.workdir.name} M{number}: {len(found)} expansions, "
        f"{sum(len(c.right) for c in found) / len(found):.2f} distinct candidates in "
        f"the mean, chosen by chance "
        f"{sum(sum(c.right) / len(c.right) for c in found) / len(found):.1%}\n\n"
        "| judge | chosen [95 %] | +/- | verdicts | calls | tokens |\n"
        "|---|---|---|---|---|---|"
    )
    paper = _chosen(found, explained, "hard", "sum")

    def show(name, verdicts, value, score):
        own = _one_order(found, verdicts, run) if score == "single" else verdicts
        chosen = _chosen(found, own, value, score)
        print(_row(name, found, own, chosen, paper, score, tokens), flush=True)

    show("hard, both orders (the paper)", explained, "hard", "sum")
    show("hard, both orders have to agree", explained, "hard", "consistent")
    show("hard, one order", explained, "hard", "single")
    show("probability, both orders", explained, "probability", "sum")
    show("probability, one order", explained, "probability", "single")
    sampled = _judged(run, number, found, mode="generate", **drawn)
    for votes in sorted({1, min(3, options.votes), options.votes}):
        # The verdicts of a first vote on all calls, then of a second, and so on.
        own = [v[: len(v) * votes // options.votes] for v in sampled]
        at = f"T = {options.temperature:g}, votes {votes}"
        show(f"hard, both orders, {at}", own, "hard", "sum")
        show(f"probability, both orders, {at}", own, "probability", "sum")
    short = _judged(run, number, found, mode="logprob", **greedy)
    short = [[v._replace(response="") for v in own] for own in short]  # not text
    show("hard, both orders, no explanation", short, "hard", "sum")
    show("probability, both orders, no explanation", short, "probability", "sum")
    if options.pointwise:
        single = _open(options.pointwise)
        alone = _judged(single, number, found, mode="generate", **greedy)
        show("hard, each step alone", alone, "hard", pointwise.SCORE)
        show("probability, each step alone", alone, "probability", pointwise.SCORE)


def _wrong(options: argparse.Namespace) -> str | None:
    """Returns what is wrong with the arguments, before anything is judged."""
    for name in ("expansions", "votes"):
        if getattr(options, name) < 1:
            return f"--{name}={getattr(options, name)}; expected 1 or more."
    if not options.temperature > 0:
        return f"--temperature={options.temperature}; expected more than 0."
    for option, folder, made, alone in (
        ("workdir", options.workdir, "search.jsonl", False),
        ("pointwise", options.pointwise, "manifest.json", True),
    ):
        if folder is None:
            continue
        if not (folder / options.model / made).is_file():
            return (
                f"--{option}={folder} --model={options.model}; expected a run "
                f"directory with {options.model}/{made}."
            )
        score = config_json.read(folder)["judge"]["score"]
        if (score == pointwise.SCORE) != alone:
            return (
                f"--{option}={folder}, a run with judge.score={score!r}; expected one "
                f"{'with' if alone else 'without'} judge.score='pointwise'."
            )
    return None


def _open(workdir: pathlib.Path) -> Run:
    settings = config.from_dict(config_json.read(workdir))
    return Run(settings, workdir, keep=True, locks=False)


def _cases(run: Run, number: int) -> Iterator[Case]:
    """Yields the expansions of a model's search that have something to choose."""
    file = run.dir.path / f"M{number}" / "search.jsonl"
    for _, row in records.read_objects(file):
        state = trajectory.from_row(row)
        graded = diagnose.graded_expansions([state], run.kind.is_right)
        both = zip(graded, trajectory.with_steps(state), strict=False)
        # Nothing is graded, so both end at once, where the gold lacks the problem.
        for (*_, right), (steps, made) in both:
            if 0 < sum(right) < len(right):
                yield Case(State(state.question, tuple(steps)), made, right)


def _judged(run: Run, number: int, found: Sequence[Case], **how) -> list[list[Verdict]]:
    """Returns the verdicts of the model about each expansion's candidates."""
    own = run.settings.judge
    score = pointwise.SCORE if own.score == pointwise.SCORE else "sum"
    how |= {"value": "probability", "score": score, "schedule": "full"}
    own = dataclasses.replace(own, by="self", model="", learn="none", **how)
    run.settings = dataclasses.replace(run.settings, judge=own)
    run.kind = kind.choose(run.settings, run.dir.path / "data")
    verdicts = []
    with contextlib.ExitStack() as stack:
        params = run.sampling_params(number)
        ask, _ = judges.open_judge(run, params, "self", None, stack)
        for at in range(0, len(found), run.slots):
            batch = found[at : at + run.slots]
            verdicts += ask(
                [
                    request(slot, c.before, c.made.candidates, c.made.path)
                    for slot, c in enumerate(batch)
                ]
            )
    return verdicts


def _one_order(
    found: Sequence[Case], verdicts: Sequence[Sequence[Verdict]], run: Run
) -> list[list[Verdict]]:
    """Returns the verdicts that would have been asked for, had it been one order."""
    kept = []
    for case, own in zip(found, verdicts, strict=True):
        seed = (run.settings.seed, *case.made.path)
        asked = set(judge.ordered_pairs(len(case.right), "single", seed))
        kept.append([v for v in own if (v.a, v.b) in asked])
    return kept


def _chosen(
    found: Sequence[Case], verdicts: Sequence[Sequence[Verdict]], value: str, score: str
) -> list[bool]:
    """Returns whether the best step of each expansion is right."""
    chosen = []
    for case, own in zip(found, verdicts, strict=True):
        scores = _scores(len(case.right), own, value, score)
        best, _ = best_and_worst(case.made.candidates, scores)
        chosen.append(case.right[best])
    return chosen


def _scores(count: int, verdicts: Sequence[Verdict], value: str, score: str) -> list:
    if score == pointwise.SCORE:
        if value == "hard":
            verdicts = [v._replace(probability=None) for v in verdicts]
        return _ALONE.scores(count, verdicts)
    counted = judge.win_counts if value == "hard" else judge.win_rates
    return counted(count, verdicts, score)


def _row(name, found, verdicts, chosen, paper, score, tokens) -> str:
    low, high = intervals.wilson(sum(chosen), len(chosen))
    gained = sum(a and not b for a, b in zip(chosen, paper, strict=True))
    lost = sum(b and not a for a, b in zip(chosen, paper, strict=True))
    graded = _ALONE.graded if score == pointwise.SCORE else judge.graded
    said = [
        right
        for case, own in zip(found, verdicts, strict=True)
        for right in graded(own, case.right)
    ]
    calls = sum(map(len, verdicts)) / len(found)
    texts = [v.response for own in verdicts for v in own if v.response]
    written = sum(len(tokens(text)) for text in texts)
    return (
        f"| {name} | {100 * sum(chosen) / len(chosen):.1f} "
        f"[{100 * low:.1f}, {100 * high:.1f}] | +{gained} -{lost} | "
        f"{100 * sum(said) / len(said):.1f} | {calls:.1f} | "
        f"{written / len(found):.0f} |"
    )


if __name__ == "__main__":
    main()
