"""Runs programs in turns, one training step each, and compares what they cost."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

HERE = pathlib.Path(__file__).parent
CPUS = 2


class Program(NamedTuple):
    """One competitor: its name, its interpreter (None: not installed), its script."""

    name: str
    python: str | None
    script: str
    layout: str


class Result(NamedTuple):
    """Median costs of a step, peak memory, and what the program said of each step."""

    cpu: float
    wall: float
    peak_mb: int
    steps: list[dict]


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(CPUS),
        "MKL_NUM_THREADS": str(CPUS),
        "OPENBLAS_NUM_THREADS": str(CPUS),
        "GOMP_SPINCOUNT": "0",  # no spinning, so that CPU seconds mean work
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


class _Process:
    """A started program; leaves its messages in a log file."""

    def __init__(self, program: Program, weights: str, log: pathlib.Path):
        self.name, self.log, self.steps = program.name, log, []
        self._process = subprocess.Popen(
            [program.python, str(HERE / program.script), weights, program.layout],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=_environment(),
        )
        self.read()

    def read(self) -> dict:
        """Returns its next line."""
        line = self._process.stdout.readline()
        if not line:
            tail = self.log.read_text()[-2000:]
            raise SystemExit(f"{self.name} ended early; its last words:\n{tail}")
        return json.loads(line)

    def step(self) -> dict:
        """Runs one training step and returns its cost."""
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self.steps.append(self.read())
        return self.steps[-1]

    def end(self) -> int:
        """Ends it and returns its peak memory in MB."""
        self._process.stdin.close()
        peak = self.read()["peak_rss_mb"]
        self._process.wait(timeout=120)
        return peak


def run(programs, weights: str, logs: pathlib.Path, rounds: int, warm_up: int = 2):
    """Returns name → `Result`; programs that are not installed are skipped aloud.

    Args:
      programs: the competitors; the first one writes the weights that all others read.
      weights: directory of the weights.
      logs: directory for what the programs print.
      rounds: steps of each program that count.
      warm_up: steps before them that do not.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    started = []
    for program in programs:
        if program.python is None:
            print(f"SKIPPED {program.name}: not installed, see README.md", flush=True)
            continue
        started.append(_Process(program, weights, logs / f"{program.name}.log"))
        for _ in range(warm_up):
            first = started[-1].step()
        print(f"{program.name}: ready, {first['cpu']:.2f} CPU s per step", flush=True)
    for number in range(rounds):
        costs = [f"{p.name} {p.step()['cpu']:.2f}" for p in started]
        print(f"round {number + 1}, CPU s: {', '.join(costs)}", flush=True)
    results = {}
    for process in started:
        peak, kept = process.end(), process.steps[warm_up:]
        cpu, wall = (statistics.median(s[key] for s in kept) for key in ("cpu", "wall"))
        results[process.name] = Result(cpu, wall, peak, process.steps)
    return results


def ask(program: Program, weights: str, logs: pathlib.Path) -> dict:
    """Runs a program that prints one line and returns it."""
    done = subprocess.run(
        [program.python, str(HERE / program.script), weights, program.layout],
        stdout=subprocess.PIPE,
        stderr=(logs / f"{program.name}.log").open("w"),
        text=True,
        env=_environment(),
        check=True,
    )
    return json.loads(done.stdout)


def matmul_rate(size: int = 1536) -> float:
    """Returns what numpy reaches in a float32 product now, in GFLOP per CPU second."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    a @ b
    best = float("inf")
    for _ in range(5):
        begun = time.process_time()
        a @ b
        best = min(best, time.process_time() - begun)
    return 2 * size**3 / best / 1e9


def python_with(path: str | None, module: str) -> str | None:
    """Returns the interpreter if it can import the module, else None."""
    if not path:
        return None
    tried = subprocess.run([path, "-c", f"import {module}"], capture_output=True)
    if tried.returncode:
        sys.exit(f"{path} cannot import {module}:\n{tried.stderr.decode()[-500:]}")
    return path
