"""How often partial tournaments choose the same steps as the full one: a replay.

    python benchmarks/schedules.py RUN [RUN ...]

RUN is a finished run directory whose judge was asked all pairs. Every expansion with at
least MIN distinct candidates is judged again under each schedule with the verdicts of
its search.jsonl, which are those that a greedy judge would give again.
"""

import argparse
import pathlib

from stepjax import records, tournament, trajectory
from stepjax.judge import Request, win_counts
from stepjax.search import best_and_worst, seeding


def main() -> None:
    """Replays the expansions and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--min", type=int, default=3, help="distinct candidates")
    parser.add_argument("--score", default="sum")
    options = parser.parse_args()
    files = [f for run in options.runs for f in sorted(run.glob("M*/search.jsonl"))]
    states = [
        trajectory.from_row(row)
        for file in files
        for _, row in records.read_objects(file)
    ]
    expansions = [
        e
        for state in states
        for e in state.expansions
        if len(e.candidates) >= options.min
    ]
    sizes = [len(e.candidates) for e in expansions]
    print(
        f"{len(expansions)} expansions of {len(files)} searches, "
        f"{sum(sizes) / len(sizes):.2f} distinct candidates in the mean, "
        f"score={options.score}\n\n"
        "| schedule | calls | same best | same worst | same pair |\n"
        "|---|---|---|---|---|"
    )
    for schedule in tournament.SCHEDULES:
        print(row_of(schedule, expansions, options.score), flush=True)


def row_of(schedule: str, expansions, score: str) -> str:
    """Returns the table's row of one schedule."""
    asked = total = 0
    same = [0, 0, 0]
    for e in expansions:
        table = {(v.a, v.b): v for v in e.verdicts}

        def judge(requests, calls=None, table=table):
            named = [list(table)] if calls is None else calls
            return [[table[call] for call in named[0]]]

        ids = tuple(c.ids for c in e.candidates)
        path = e.step, e.attempt
        request = Request(0, "", "", (), ids, path, seeding(e.candidates))
        (verdicts,) = tournament.scheduled(judge, schedule, score, 0)([request])
        full = best_and_worst(e.candidates, win_counts(len(ids), e.verdicts, score))
        part = best_and_worst(e.candidates, win_counts(len(ids), verdicts, score))
        asked, total = asked + len(verdicts), total + len(table)
        for place, equal in enumerate(
            (full[0] == part[0], full[1] == part[1], full == part)
        ):
            same[place] += equal
    shares = " | ".join(f"{count / len(expansions):.1%}" for count in same)
    return f"| {schedule} | {asked / total:.1%} | {shares} |"


if __name__ == "__main__":
    main()
