"""Verdicts on pairs of final answers, beside math-verify, and the time they take.

    python benchmarks/grading.py [--pairs=FILE] [--eval=FOLDER]

FILE has lines of {"prediction", "gold", "equal", "kind"}; without it the pairs of the
tests are taken, on which stepjax was developed. FOLDER has benchmarks, *.jsonl with
"answer": every one is compared with itself and the one after it. Each pair on which
the two graders disagree is printed. math-verify is skipped where it is not installed.
"""

import argparse
import collections
import json
import pathlib
import sys
import time

from stepjax.evaluation import answers

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main() -> None:
    """Compares the pairs and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=pathlib.Path)
    parser.add_argument("--eval", type=pathlib.Path)
    options = parser.parse_args()
    rows, other = pairs(options.pairs), second_opinion()
    counts: dict = collections.defaultdict(collections.Counter)
    for row in rows:
        ours = answers.equivalent(row["prediction"], row["gold"])
        theirs = other(row["prediction"], row["gold"]) if other else None
        count = counts[row["kind"]]
        count["pairs"] += 1
        for name, verdict in (("stepjax", ours), ("math-verify", theirs)):
            count[name, "right"] += verdict == row["equal"]
            count[name, "wrongly equal"] += verdict is True and not row["equal"]
        if ours != row["equal"] or (other and theirs != ours):
            print(json.dumps(row | {"stepjax": ours, "math-verify": theirs}))
    names = ["stepjax", "math-verify"] if other else ["stepjax"]
    columns = [(name, what) for name in names for what in ("right", "wrongly equal")]
    print(f"\n| kind | pairs | {' | '.join(map(' '.join, columns))} |")
    print("|---" * (2 + len(columns)) + "|")
    counts["all"] = sum(counts.values(), collections.Counter())
    for kind, count in counts.items():
        cells = [count[column] for column in columns]
        print(f"| {kind} | {count['pairs']} | {' | '.join(map(str, cells))} |")
    if options.eval:
        timed(options.eval)


def pairs(file: pathlib.Path | None) -> list[dict]:
    """Returns the pairs of a file, or those of the tests."""
    if file:
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    sys.path.append(str(ROOT / "tests"))
    import answer_pairs

    kinds = {"PLAIN_EQUAL": True, "EQUAL": True, "DIFFERENT": False}
    return [
        {"prediction": prediction, "gold": gold, "equal": equal, "kind": kind}
        for kind, equal in kinds.items()
        for prediction, gold in getattr(answer_pairs, kind)
        if prediction is not None
    ]


def second_opinion():
    """Returns math-verify's verdict as a function, or None where it is missing."""
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError:
        print("SKIPPED math-verify: not installed")
        return None

    def equal(prediction: str, gold: str) -> bool:
        boxed = (f"\\boxed{{{text}}}" for text in (gold, prediction))
        return bool(verify(*map(parse, boxed)))

    return equal


def timed(folder: pathlib.Path) -> None:
    """Prints the seconds that the golds of benchmarks take."""
    lines = [
        json.loads(line)["answer"]
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.read_text("utf-8").splitlines()
    ]
    golds = [gold for gold in lines if gold]
    began = time.perf_counter()
    for gold, following in zip(golds, [*golds[1:], golds[0]], strict=True):
        if not answers.equivalent(gold, gold):
            print(f"not equal to itself: {gold!r}")
        answers.equivalent(gold, following)
    seconds = time.perf_counter() - began
    print(f"\n{2 * len(golds)} comparisons of {len(golds)} golds: {seconds:.1f} s")


if __name__ == "__main__":
    main()
