"""What `search.weights="int8"` does to verdicts, chosen steps and greedy tokens.

    python benchmarks/int8.py --workdir=RUN --model=M1 [--questions=48] [--mode=logprob]

RUN is a run directory; give the script a copy, because opening a run may write to its
log. The model searches its first questions with its full weights. The same candidates
are then judged with int8 weights, with the same random keys, and so are the held-out
rows. Last, both write greedy solutions of the questions. The table says how many of the
verdicts, steps and tokens are equal. Steps count if they have two or more distinct
candidates; "chosen" is the step that would be appended, "pair" is the preference that
would be kept, or that there is none. Greedy tokens count up to the end of the longer
solution. `--mode` takes the place of the run's `judge.mode`.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence

from stepjax import config, records
from stepjax.evaluation import grading
from stepjax.judge import Request
from stepjax.lm import draws
from stepjax.lm.sampler import make_decoding, sample_behind
from stepjax.run import config_json, judges, rollout
from stepjax.run.run import Run
from stepjax.search import best_and_worst, request
from stepjax.trajectory import Expansion, State, with_steps


def main() -> None:
    """Measures a model and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--model", default="M1")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--mode", choices=("generate", "logprob"))
    options = parser.parse_args()
    settings = config.from_dict(config_json.read(options.workdir))
    run = Run(settings, options.workdir, keep=True, locks=False)
    number = int(options.model.removeprefix("M"))
    mode = options.mode or run.settings.judge.mode
    judge = dataclasses.replace(run.settings.judge, mode=mode)
    run.settings = dataclasses.replace(run.settings, judge=judge)
    params = [_params(run, number, weights) for weights in ("full", "int8")]
    asked = run.dir.read("questions_1", records.Question)[: options.questions]
    print(f"{options.workdir.name} M{number}, judge.mode={mode}")
    print("| what | of | number | share |\n|---|---|---|---|")
    for part in (_held_out, _steps, _greedy):
        for name, hits in part(run, number, params, asked):
            share = sum(hits) / len(hits) if hits else float("nan")
            print(f"| {name} | {len(hits)} | {sum(hits)} | {share:.4f} |", flush=True)


def _params(run: Run, number: int, weights: str):
    search = dataclasses.replace(run.settings.search, weights=weights)
    run.settings = dataclasses.replace(run.settings, search=search)
    return run.sampling_params(number)


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _held_out(run: Run, number: int, params, asked) -> Iterator[tuple[str, list]]:
    rows = run.dir.read("heldout", run.kind.judgments.record)
    said = []
    for name, own in zip(("full", "int8"), params, strict=True):
        sampler = judges.open_sampler(run, own, run.settings.judge.context_tokens)
        judge = judges.self_judge(run, sampler, rows=1)
        how = {"slots": run.slots, "judgments": run.kind.judgments}
        items = grading.judge_accuracy(judge, run.codec, rows, **how)
        said.append([item["prediction"] for item in items])
        yield f"right held-out verdicts, {name}", [item["right"] for item in items]
    yield "equal held-out verdicts", [a == b for a, b in zip(*said, strict=True)]


def _steps(run: Run, number: int, params, asked) -> Iterator[tuple[str, list]]:
    """Searches with full weights, and judges the candidates again with int8 ones."""
    states = list(rollout.search_questions(run, params[0], asked, number))
    todo = [item for state in states for item in _requests(state)]
    verdicts, chosen, pairs = [], [], []
    with contextlib.ExitStack() as stack:
        judge, _ = judges.open_judge(run, params[1], "self", None, stack)
        for batch in _batches(todo, run.slots):
            requests = [
                asked._replace(slot=slot) for slot, (_, asked) in enumerate(batch)
            ]
            for (made, _), said in zip(batch, judge(requests), strict=True):
                table = {(v.a, v.b): v.winner for v in said}
                for v in made.verdicts:
                    if (v.a, v.b) in table:  # a tournament may ask others
                        verdicts.append(v.winner == table[v.a, v.b])
                one, other = (_decided(run, made, v) for v in (made.verdicts, said))
                chosen.append(one[0] == other[0])
                pairs.append(one[1] == other[1])
    yield "equal verdicts on its own candidates", verdicts
    yield "equal chosen steps", chosen
    yield "equal pairs", pairs


def _requests(state: State) -> Iterator[tuple[Expansion, Request]]:
    """Yields what the judge was asked in a search, with two candidates or more."""
    for steps, made in with_steps(state):
        before = State(state.question, tuple(steps))
        if len(made.candidates) > 1:
            yield made, request(0, before, made.candidates, made.path)


def _decided(run: Run, made: Expansion, verdicts) -> tuple[int, tuple | None]:
    """Returns the step that verdicts choose, and the pair that they make."""
    scores = run.kind.judgments.scores(len(made.candidates), verdicts)
    best, worst = best_and_worst(made.candidates, scores)
    return best, (best, worst) if scores[best] != scores[worst] else None


def _greedy(run: Run, number: int, params, asked) -> Iterator[tuple[str, list]]:
    most, written = run.settings.eval.max_tokens, []
    decoding = make_decoding(
        run.codec.tokenizer, (), seed=0, temperature=0.0, top_p=1.0, max_tokens=most
    )
    path = [(0,) * draws.PATH_LENGTH]  # nothing is drawn
    for own in params:
        sampler = judges.open_sampler(run, own, run.settings.search.context_tokens)
        written.append([])
        for batch in _batches(asked, run.slots):
            prompts = {
                n: run.codec.solve_prompt(row.problem) for n, row in enumerate(batch)
            }
            rows = sample_behind(
                sampler, prompts, dict.fromkeys(prompts, path), decoding
            )
            written[-1] += [rows[n][0].ids for n in prompts]
    both = list(zip(*written, strict=True))
    yield (
        "equal greedy tokens",
        [x == y for a, b in both for x, y in itertools.zip_longest(a, b)],
    )
    yield "equal greedy solutions", [a == b for a, b in both]


if __name__ == "__main__":
    main()
