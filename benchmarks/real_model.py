"""Tokens per second of a real model, in stepjax and in torch with transformers.

    python benchmarks/real_model.py --model=DIR --torch=PYTHON

DIR is a Hugging Face folder of a model that stepjax reads, for example SmolLM2-135M;
--model=gguf:FILE takes a GGUF file, which is first written to such a folder.
PYTHON is an interpreter in which torch and transformers are installed; without it the
peers are skipped. Both programs compute in float32 and in bfloat16. The shapes are in
real_work.py; README.md says what is compared, and has the last results.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile

import compare
import numpy as np
import real_work as shapes

TYPES = ("float32", "bfloat16")
TITLES = {
    "gradient": "training step, forward and backward pass",
    "update": "training step, whole update with AdamW",
    "score": "scoring",
    "sample": "candidates",
    "judge": "judgments",
}
LARGEST = 1e-3  # relative difference of losses and scores, in float32
LEAST = 0.9  # share of greedy explanations with the same tokens, in float32


def fast_types() -> str:
    """Returns which instructions for bfloat16 products the CPU has."""
    info = pathlib.Path("/proc/cpuinfo")
    words = set(re.findall(r"\w+", info.read_text())) if info.exists() else set()
    return ", ".join(sorted(words & {"amx_bf16", "avx512_bf16"})) or "none"


def measure(name: str, options, logs: pathlib.Path) -> list[str]:
    """Runs the programs of one kind of work in turns and prints their table.

    Returns:
      What the programs do not agree about in float32, [] if they do.
    """
    python = compare.python_with(options.torch, "torch")
    programs = [
        compare.Program(
            f"{peer} {dtype}", interpreter, f"real_model_{peer}.py", f"{name}, {dtype}"
        )
        for peer, interpreter in (("stepjax", sys.executable), ("torch", python))
        for dtype in TYPES
    ]
    results = compare.run(programs, options.model, logs, options.rounds, warm_up=1)
    tokens = shapes.TOKENS[name]
    best = {
        peer: min((result.wall, n) for n, result in results.items() if peer in n)[1]
        for peer in ("stepjax", "torch")
        if f"{peer} {TYPES[0]}" in results
    }
    fastest = results[best["torch"]].wall if "torch" in best else None
    print(
        f"\n{TITLES[name]}: {tokens} tokens per turn, median of {options.rounds} "
        f"turns, load {os.getloadavg()[0]:.1f}\n\n"
        "| program | CPU s | wall s | tokens / s | of the faster torch | peak MB |\n"
        "|---|---|---|---|---|---|"
    )
    for program, result in results.items():
        ratio = f"{fastest / result.wall:.2f}" if fastest else "-"
        print(
            f"| {program} | {result.cpu:.2f} | {result.wall:.2f} "
            f"| {tokens / result.wall:.0f} | {ratio} | {result.peak_mb} |"
        )
    if not fastest:
        print(flush=True)
        return []
    ours = results[best["stepjax"]]
    print(
        f"{best['stepjax']} makes {fastest / ours.wall:.2f} times the tokens per "
        f"second of {best['torch']}"
    )
    differing = []
    for dtype in TYPES:
        same, text = agreement(name, *(results[f"{p} {dtype}"].steps for p in best))
        print(f"{dtype}: {text}")
        if dtype == TYPES[0] and not same:
            differing.append(f"{TITLES[name]}: {text}")
    print(flush=True)
    return differing


def agreement(name: str, ours: list[dict], theirs: list[dict]) -> tuple[bool, str]:
    """Returns whether the results of all turns agree, and how far, for people."""
    if name == "sample":
        return True, "samples are random, so only their number and length is compared"
    keys = ("loss", "grad_norm") if name in ("gradient", "update") else ("rows",)
    sides = [[[step[key] for key in keys] for step in side] for side in (ours, theirs)]
    one, other = map(np.array, sides)
    if name == "judge":
        same = (one == other).all(-1)
        text = f"{same.sum()} of {same.size} explanations have the same tokens"
        return bool(same.mean() >= LEAST), text
    largest = (abs(one - other) / abs(other)).max()
    what = "scores" if name == "score" else "losses and gradient norms"
    return bool(largest <= LARGEST), f"{what} differ by at most {largest:.1e} of theirs"


def main() -> None:
    """Runs all programs in turns and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="DIR", required=True)
    parser.add_argument("--torch", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", choices=tuple(TITLES), action="append")
    options = parser.parse_args()
    file = options.model.removeprefix("gguf:")
    is_gguf = file != options.model
    if not pathlib.Path(file if is_gguf else f"{file}/config.json").is_file():
        parser.error(
            f"--model={options.model}; expected the folder of a Hugging Face model, "
            "with its config.json, or gguf: and the path of a GGUF file"
        )
    print(f"instructions for bfloat16 products on this CPU: {fast_types()}", flush=True)
    differing = []
    with tempfile.TemporaryDirectory() as folder:
        if is_gguf:
            to, script = f"{folder}/model", "real_model_stepjax.py"
            convert = compare.Program("convert", sys.executable, script, to)
            compare.ask(convert, options.model, pathlib.Path(folder))
            options.model = to
        for name in options.work or TITLES:
            differing += measure(name, options, pathlib.Path(folder))
    if differing:
        sys.exit(
            "The programs do not do the same work in float32:\n" + "\n".join(differing)
        )


if __name__ == "__main__":
    main()
