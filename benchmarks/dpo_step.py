"""A full step-DPO training step against a hand-written torch step, tunix and TRL.

    python benchmarks/dpo_step.py --torch=PYTHON --tunix=PYTHON --trl=PYTHON

Policy forward and backward, reference forward, clipping, AdamW, from token ids to new
parameters, with the shapes of work.py. Each PYTHON is an interpreter in which that peer
is installed; a peer without one is skipped. README.md has the last results.
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
    for peer in ("torch", "tunix", "trl"):
        parser.add_argument(f"--{peer}", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    programs = [compare.Program("stepjax", sys.executable, "run_stepjax.py", "single")]
    for peer in ("torch", "tunix", "trl"):
        python = compare.python_with(getattr(options, peer), peer)
        programs.append(compare.Program(peer, python, f"run_{peer}.py", "single"))
    rate = compare.matmul_rate()
    with tempfile.TemporaryDirectory() as folder:
        logs = pathlib.Path(folder)
        results = compare.run(programs, f"{folder}/model", logs, options.rounds)
    rate = max(rate, compare.matmul_rate())
    floor = work.least_flops() / 1e9 / rate
    ours = results["stepjax"]
    print(
        f"\nMedian of {options.rounds} steps, load {os.getloadavg()[0]:.1f}; least "
        f"arithmetic {work.least_flops() / 1e9:.0f} GFLOP, {floor:.2f} CPU s at the "
        f"{rate:.0f} GFLOP per CPU s of a matrix product here\n\n"
        "| program | CPU s | wall s | stepjax takes | x limit | peak MB |\n"
        "|---|---|---|---|---|---|"
    )
    for name, result in results.items():
        print(
            f"| {name} | {result.cpu:.2f} | {result.wall:.2f} "
            f"| {ours.cpu / result.cpu:.2f} | {result.cpu / floor:.2f} "
            f"| {result.peak_mb} |"
        )
    for name, result in results.items():
        first = {k: round(v, 5) for k, v in result.steps[0].items() if k[0] in "lg"}
        if first:
            print(f"{name}, first step: {first}")


if __name__ == "__main__":
    main()
