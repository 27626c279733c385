"""Draws docs/quickstart.png from finished quickstart runs.

    python docs/plot_quickstart.py DIR_SEED_0 DIR_SEED_1 DIR_SEED_2

Needs matplotlib.
"""

import json
import pathlib
import sys

import matplotlib.pyplot as plt


def main(folders: list[str]) -> None:
    """Plots greedy accuracy with its 95 % interval over the models, a line a run."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for shift, folder in enumerate(folders):
        root = pathlib.Path(folder)
        seed = json.loads((root / "config.json").read_text())["seed"]
        files = sorted(root.glob("eval/M[1-9]_test_greedy.json"))
        metrics = [json.loads(file.read_text())["metrics"] for file in files]
        rates = [100 * m["accuracy"] for m in metrics]
        below = [100 * (m["accuracy"] - m["low"]) for m in metrics]
        above = [100 * (m["high"] - m["accuracy"]) for m in metrics]
        places = [
            i + 0.04 * (shift - (len(folders) - 1) / 2) for i in range(len(rates))
        ]
        axes.errorbar(
            places, rates, [below, above], marker="o", capsize=3, label=f"seed {seed}"
        )
    axes.set_xticks(range(len(rates)), [file.name.split("_")[0] for file in files])
    axes.set_ylabel("greedy accuracy, %")
    axes.set_title("Quickstart: trained on its own judgments, M1 to M3", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    target = pathlib.Path(__file__).with_name("quickstart.png")
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
