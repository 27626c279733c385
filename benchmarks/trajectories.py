"""Pairs of whole trajectories in one tree against two other layouts of these pairs.

    python benchmarks/trajectories.py --torch=PYTHON
    python benchmarks/trajectories.py --flops

Training steps on 4 problems of 8 steps with one pair per step (work.py), in three
layouts: trees of whole trajectories, trees of one pair each, whose two steps share
their own context (what dpo-prefix-sharing does, arXiv 2410.20305), and one by one; and
one by one through the hand-written torch step. Then the gradients of the three layouts
are compared. --flops runs nothing: it counts tokens and the FLOPs of matrix products,
which XLA's cost analysis does not (it counts the body of a loop once). README.md has
the last results.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import compare
import work


def main() -> None:
    """Runs all programs in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flops", action="store_true")
    options = parser.parse_args()
    ours = "run_stepjax.py"
    if options.flops:
        return _count_flops(ours)
    programs = [
        compare.Program("trees", sys.executable, ours, "forest"),
        compare.Program("a tree per pair", sys.executable, ours, "pair"),
        compare.Program("one by one", sys.executable, ours, "separate"),
        compare.Program(
            "torch, one by one",
            compare.python_with(options.torch, "torch"),
            "run_torch.py",
            "separate",
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        logs = pathlib.Path(folder)
        results = compare.run(
            programs, f"{folder}/model", logs, options.rounds, warm_up=1
        )
        program = compare.Program("check", sys.executable, ours, "check")
        same = compare.ask(program, f"{folder}/model", logs)
    pairs = work.PROBLEMS * work.STEPS
    trees = results["trees"]
    print(
        f"\nMedian of {options.rounds} steps of {pairs} pairs, load "
        f"{os.getloadavg()[0]:.1f}\n\n"
        "| layout | CPU s/pair | wall s/pair | trees are faster by | peak MB |\n"
        "|---|---|---|---|---|"
    )
    for name, result in results.items():
        print(
            f"| {name} | {result.cpu / pairs:.3f} | {result.wall / pairs:.3f} "
            f"| {result.cpu / trees.cpu:.2f} | {result.peak_mb} |"
        )
    for name, result in results.items():
        first = {k: round(v, 5) for k, v in result.steps[0].items() if k[0] in "lg"}
        print(f"{name}, first step: {first}")
    print(
        "Gradients of the other layouts against those of trees, with a policy that "
        f"is not the reference: {same}"
    )


def _count_flops(script: str) -> None:
    """Prints what the three layouts compute in a training step."""
    with tempfile.TemporaryDirectory() as folder:
        program = compare.Program("flops", sys.executable, script, "flops")
        facts = compare.ask(program, f"{folder}/model", pathlib.Path(folder))
    trees = facts["forest"]
    names = {"forest": "trees", "pair": "a tree per pair", "separate": "one by one"}
    print("| layout | tokens | GFLOP | GFLOP of trees, as a share |\n|---|---|---|---|")
    for layout, fact in facts.items():
        share = fact["gflop"] / trees["gflop"]
        print(
            f"| {names[layout]} | {fact['tokens']:,} | {fact['gflop']:,.0f} "
            f"| 1 / {share:.2f} |"
        )


if __name__ == "__main__":
    main()
