"""Peak host memory of step-DPO, and seconds to its first update, by number of pairs.

    python benchmarks/long_data.py [--pairs=1000,100000] [--updates=10]

The pairs are made up and of realistic size: prompts of 180 tokens, five steps of 60, so
that contexts have 300 on average; six candidates with 30 verdicts of 200 characters
each. The model is random and tiny, so that its own memory does not hide that of the
data. Each number of pairs has a run directory and a fresh process, in which the stage
`dpo` runs with a live reference until some updates are done. All threads take memory
from one arena of malloc: else it depends on chance how much of what they give back
stays with the process. Run it twice: compiling takes memory too, and the second time
the program comes from the compile cache.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

STEPS, PROMPT, STEP = 5, 180, 60
UPDATE = 16  # pairs


def get_config():
    """Returns the settings of the run."""
    from stepjax import config

    c = config.default()
    c.iterations = 1
    c.data.world = "arithmetic"
    c.data.questions = (8,)
    c.data.ift_count = c.data.eft_count = 32
    c.data.heldout_count = c.data.test_count = 4
    c.model.num_layers = 1
    c.model.hidden_size = 16
    c.model.num_heads = c.model.num_kv_heads = 1
    c.model.head_dim = 16
    c.model.intermediate_size = 16
    c.train.row_length = PROMPT + 2 * STEPS * STEP + 20
    c.dpo.batch_size = UPDATE
    c.dpo.reference = "live"
    return c


def rows(count, vocabulary):
    """Yields rows of `pairs.jsonl`, about 8 kB each."""
    from stepjax.pairs import Pair

    draw = random.Random(0)
    said = "The second step follows from the first, and its sum is right. " * 4

    def ids(size):
        return draw.choices(range(1, vocabulary), k=size)

    for number in range(count):
        problem, step = divmod(number, STEPS)
        if step == 0:
            context = ids(PROMPT)
        candidates = [f"Step {step + 1}: {said[:150]} {n}" for n in range(6)]
        calls = [(a, b) for a in range(6) for b in range(6) if a != b]
        chosen = ids(STEP)
        yield Pair(
            id=f"problem-{problem}/{step + 1}",
            problem_id=f"problem-{problem}",
            problem=said,
            step=step + 1,
            steps=candidates[:step],
            context_ids=context,
            chosen_ids=chosen,
            rejected_ids=ids(STEP),
            chosen=candidates[0],
            rejected=candidates[5],
            scores=[10.0, 8.0, 6.0, 4.0, 2.0, 0.0],
            counts=[1] * 6,
            candidates=candidates,
            best=0,
            worst=5,
            verdicts=[[a, b, "AB"[a > b], said[:200], None] for a, b in calls],
            chosen_logp=-20.0,
            rejected_logp=-30.0,
            model="M1",
            iteration=1,
            seed_path=[0, 1, problem, step, 0],
        )
        context = context + chosen


def make(folder, count) -> None:
    """Makes a run with a random M1 whose search has found `count` pairs."""
    from stepjax import records
    from stepjax.run.run import Run

    run = Run(get_config(), folder)
    model = run.dir.model(1)
    arrays = run.save(model, run.params(0))
    stage = run.dir.stage("sft", model / "manifest.json", {})
    stage.commit(arrays=arrays, counts={"updates": {}})
    inputs = run.dir.model_digest(1)
    stage = run.dir.stage("search", model / "search.json", inputs)
    made = rows(count, run.model.config.vocab_size)
    records.write_jsonl(model / "pairs.jsonl", made)
    stage.commit(["pairs.jsonl"], counts={"pairs": count, "questions": count // STEPS})


def peak() -> float:
    """Returns the most memory that this process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Enough(BaseException):
    """The updates that were wanted are done."""


def learn(folder, updates) -> dict:
    """Runs the stage `dpo` for some updates; returns what was measured."""
    import jax

    from stepjax import dpo, iterate
    from stepjax.lm import train
    from stepjax.run.run import Run

    run = Run(get_config(), folder)
    at, cpu, layouts, peaks = [], [], [], [peak()]
    make_update = train.make_update
    read = getattr(dpo, "Batches", None) and dpo.Batches.__getitem__

    def timed_update(*args, **options):
        update = make_update(*args, **options)

        def step(*arguments):
            at.append(time.monotonic())
            cpu.append(time.process_time())
            peaks.append(peak())
            result = update(*arguments)
            if len(at) == updates:
                jax.block_until_ready(result)
                at.append(time.monotonic())
                raise Enough
            return result

        return step

    def timed_read(self, step):
        before = time.monotonic()
        batch = read(self, step)
        layouts.append(time.monotonic() - before)
        return batch

    train.make_update = timed_update
    if read:
        dpo.Batches.__getitem__ = timed_read
    began, cpu_began = time.monotonic(), time.process_time()
    try:
        iterate.dpo(run, 1)
    except Enough:
        pass
    assert len(at) == updates + 1, "fewer updates than were wanted"
    return {
        "first update starts, s": at[0] - began,
        "of these, CPU s": cpu[0] - cpu_began,
        "further updates, s each": (at[-1] - at[1]) / (updates - 1),
        "laying one out, s": sum(layouts) / max(len(layouts), 1),
        "peak MB before the stage": peaks[0],
        "before the first update": peaks[1],
        "of all": peak(),
    }


def main() -> None:
    """Prints one line for each number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="1000,100000")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--part", help="what a process of its own does, for this file")
    parser.add_argument("--folder")
    flags = parser.parse_args()
    if flags.part == "make":
        make(flags.folder, int(flags.pairs))
        return
    if flags.part == "learn":
        print(json.dumps(learn(flags.folder, flags.updates)))
        return
    for count in flags.pairs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            where = [f"--folder={folder}/run", f"--pairs={count}"]
            where.append(f"--updates={flags.updates}")
            for part in ("make", "learn"):
                done = subprocess.run(
                    [sys.executable, __file__, f"--part={part}", *where],
                    env=os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1"},
                    stdout=subprocess.PIPE,
                    check=True,
                )
            size = pathlib.Path(folder, "run/M1/pairs.jsonl").stat().st_size
            measured = json.loads(done.stdout)
        found = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        print(f"{int(count):,} pairs, {size / 1e6:,.0f} MB: {found}", flush=True)


if __name__ == "__main__":
    main()
