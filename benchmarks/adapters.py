"""Step-DPO of adapters beside step-DPO of all parameters, on the same pairs.

    python benchmarks/adapters.py --model=DIR --pairs=RUN/M1/pairs.jsonl

DIR is a folder of Hugging Face files, such as an M1 that `stepjax export` wrote, and
the pairs are those that this model made. All programs start at the same model, so the
first loss of each is ln 2, and take turns, one update each. README.md has the last
results.
"""

import argparse
import pathlib
import sys
import tempfile

import compare


def main() -> None:
    """Runs both programs in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of Hugging Face files")
    parser.add_argument("--pairs", required=True, help="pairs.jsonl of this model")
    parser.add_argument("--ranks", default="16", help="such as 8,64")
    parser.add_argument("--batch", default=32, type=int, help="pairs of an update")
    parser.add_argument("--row-length", default=512, type=int)
    parser.add_argument("--dtype", default="bfloat16", help="that of products")
    parser.add_argument("--rounds", type=int, default=5, help="updates that count")
    options = parser.parse_args()
    source = [options.model, options.pairs, options.batch, options.row_length]
    arms = ["full", *(f"rank-{rank}" for rank in options.ranks.split(","))]
    script = "adapters_stepjax.py"
    programs = [compare.Program(arm, sys.executable, script, arm) for arm in arms]
    given = ",".join(map(str, [*source, options.dtype]))
    with tempfile.TemporaryDirectory() as folder:
        results = compare.run(programs, given, pathlib.Path(folder), options.rounds, 1)
    print(
        "\n| trained | numbers | MB of a model on the disk | first loss "
        "| loss of the last update | CPU s of an update | wall s | peak MB |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, (cpu, wall, peak, steps) in results.items():
        first, last = steps[0], steps[-1]
        print(
            f"| {name} | {first['numbers']:,} | {4 * first['numbers'] / 1e6:.1f} "
            f"| {first['loss']:.7f} | {last['loss']:.4f} "
            f"| {cpu:.2f} | {wall:.2f} | {peak} |"
        )


if __name__ == "__main__":
    main()
