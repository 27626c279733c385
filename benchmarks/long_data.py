"""Peak host memory of training, and seconds to its first update, by number of rows.

    python benchmarks/long_data.py [--stage=dpo] [--rows=1000,100000] [--updates=10]

Of step-DPO, or with `--stage=sft` of SFT. The rows are made up and of realistic size.
Pairs have prompts of 180 tokens and five steps of 60, so that contexts have 300 on
average, and six candidates with 30 verdicts of 200 characters each. Solutions have five
steps, and some 800 tokens of a small byte-level vocabulary with their prompt; half of
them are longer than a row of training and are left out. The model is random and tiny,
so that its own memory does not hide that of the data. Each number of
rows has a run directory and a fresh process, in which the stage runs until some updates
are done, with a live reference. All threads take memory from one arena of malloc: else
it depends on chance how much of what they give back stays with the process. Run it
twice: compiling takes memory too, and the second time the program comes from the
compile cache.
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


def get_config(files=None):
    """Returns the settings of a run whose pairs, or whose IFT rows, are many.

    Args:
      files: folder with the files of the run's data; None for those of a world.
    """
    from stepjax import config

    c = config.default()
    c.iterations = 1
    c.data.world = "" if files else "arithmetic"
    c.data.questions = (8,)
    c.data.heldout_count = c.data.test_count = 4
    c.model.num_layers = 1
    c.model.hidden_size = 16
    c.model.num_heads = c.model.num_kv_heads = 1
    c.model.head_dim = 16
    c.model.intermediate_size = 16
    c.train.row_length = PROMPT + 2 * STEPS * STEP + 20
    if files:
        c.tokenizer = f"{files}/tokenizer"
        c.data.ift, c.data.eft = f"{files}/ift.jsonl", f"{files}/eft.jsonl"
        c.data.question_file = c.data.test = f"{files}/questions.jsonl"
        c.search.max_step_tokens = 64
        c.sft.phases = (config.phase(ift=1.0, eft=0.0, batch_size=4),)
    else:
        c.data.ift_count = c.data.eft_count = 32
        c.dpo.batch_size = UPDATE
        c.dpo.reference = "live"
    return c


def pairs(count, vocabulary):
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


def make_pairs(folder, count) -> None:
    """Makes a run with a random M1 whose search has found `count` pairs."""
    from stepjax import records
    from stepjax.run.run import Run

    run = Run(get_config(), folder / "run")
    model = run.dir.model(1)
    arrays = run.save(model, run.params(0))
    stage = run.dir.stage("sft", model / "manifest.json", {})
    stage.commit(arrays=arrays, counts={"updates": {}})
    inputs = run.dir.model_digest(1)
    stage = run.dir.stage("search", model / "search.json", inputs)
    made = pairs(count, run.model.config.vocab_size)
    records.write_jsonl(model / "pairs.jsonl", made)
    stage.commit(["pairs.jsonl"], counts={"pairs": count, "questions": count // STEPS})


def solutions(count):
    """Yields rows of `ift.jsonl`, about 1.5 kB each: words and numbers at random."""
    draw = random.Random(0)
    letters = "aeinorst" * 3 + "bcdfghklmpuvwy"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]

    def sentence(size):
        some = draw.choices(words, k=size)
        return f"{' '.join(some)} {draw.randint(2, 99)} + {draw.randint(2, 99)}."

    for number in range(count):
        texts = [sentence(draw.randint(20, 35)) for _ in range(STEPS)]
        texts[-1] += rf" So the answer is \boxed{{{number}}}."
        problem = f"{sentence(draw.randint(25, 50))} How many are {number}?"
        row = {"id": f"row-{number}", "problem": problem}
        yield row | {"steps": texts, "answer": str(number)}


def make_solutions(folder, count) -> None:
    """Makes a run with `count` IFT rows, up to where SFT begins."""
    import tokenizers

    from stepjax import records
    from stepjax.run.run import Run

    records.write_jsonl(folder / "ift.jsonl", solutions(count))
    said = {"a": "Step 1: five", "b": "Step 1: six", "verdict": "A"}
    eft = [{"id": f"e{n}", "problem": f"Is it {n}?", "steps": []} for n in range(6)]
    records.write_jsonl(folder / "eft.jsonl", [row | said for row in eft])
    asked = [{"id": f"q{n}", "problem": f"And {n}?", "answer": "1"} for n in range(40)]
    records.write_jsonl(folder / "questions.jsonl", asked)
    ids = tokenizers.ByteLevelBPETokenizer()
    texts = (" ".join([row["problem"], *row["steps"]]) for row in solutions(500))
    ids.train_from_iterator(texts, vocab_size=1024, special_tokens=["</s>"])
    (folder / "tokenizer").mkdir()
    ids.save(str(folder / "tokenizer/tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    config_file = folder / "tokenizer/tokenizer_config.json"
    config_file.write_text(json.dumps(kind), "utf-8")
    before = peak()
    Run._check_phases = lambda run: None  # it counts tokens, which `learn` measures
    Run(get_config(folder), folder / "run")
    said = f"making the data took the peak from {before:.0f} to {peak():.0f} MB"
    print(f"{count:,} rows: {said}", file=sys.stderr)


def peak() -> float:
    """Returns the most memory that this process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Enough(BaseException):
    """The updates that were wanted are done."""


def learn(stage, folder, updates) -> dict:
    """Runs a stage for some updates; returns what was measured."""
    import jax

    from stepjax import iterate
    from stepjax.lm import train
    from stepjax.run.run import Run

    peaks = [peak()]
    clocks = [(time.monotonic(), time.process_time())]
    run = Run(get_config(folder if stage == "sft" else None), folder / "run")
    ready = time.monotonic()
    layouts = []
    make_update, fit = train.make_update, Run.fit

    def timed_update(*args, **options):
        update = make_update(*args, **options)

        def step(*arguments):
            clocks.append((time.monotonic(), time.process_time()))
            peaks.append(peak())
            result = update(*arguments)
            if len(peaks) == updates + 1:
                jax.block_until_ready(result)
                clocks.append((time.monotonic(), time.process_time()))
                raise Enough
            return result

        return step

    def timed_fit(self, params, *, batch_at, **options):
        def timed(step):
            before = time.monotonic()
            batch = batch_at(step)
            layouts.append(time.monotonic() - before)
            return batch

        return fit(self, params, batch_at=timed, **options)

    train.make_update, Run.fit = timed_update, timed_fit
    try:
        {"dpo": lambda: iterate.dpo(run, 1), "sft": lambda: iterate.sft(run)}[stage]()
    except Enough:
        pass
    assert len(clocks) == updates + 2, "fewer updates than were wanted"
    (began, cpu_began), (first, cpu_first), *_, (end, _) = clocks
    return {
        "the run is ready, s": ready - began,
        "first update starts, s": first - began,
        "of these, CPU s": cpu_first - cpu_began,
        "further updates, s each": (end - clocks[2][0]) / (updates - 1),
        "laying one out, s": sum(layouts) / len(layouts),
        "peak MB before the run": peaks[0],
        "before the first update": peaks[1],
        "of all": peak(),
    }


def main() -> None:
    """Prints one line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", default="dpo", choices=("dpo", "sft"))
    parser.add_argument("--rows", default="1000,100000")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--part", help="what a process of its own does, for this file")
    parser.add_argument("--folder", type=pathlib.Path)
    flags = parser.parse_args()
    if flags.part == "make":
        make = {"dpo": make_pairs, "sft": make_solutions}[flags.stage]
        make(flags.folder, int(flags.rows))
        return
    if flags.part == "learn":
        print(json.dumps(learn(flags.stage, flags.folder, flags.updates)))
        return
    file = {"dpo": "run/M1/pairs.jsonl", "sft": "run/data/ift.jsonl"}[flags.stage]
    for count in flags.rows.split(","):
        with tempfile.TemporaryDirectory() as folder:
            where = [f"--folder={folder}", f"--rows={count}"]
            where += [f"--updates={flags.updates}", f"--stage={flags.stage}"]
            for part in ("make", "learn"):
                done = subprocess.run(
                    [sys.executable, __file__, f"--part={part}", *where],
                    env=os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1"},
                    stdout=subprocess.PIPE,
                    check=True,
                )
            size = pathlib.Path(folder, file).stat().st_size
            measured = json.loads(done.stdout.splitlines()[-1])
        found = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        print(f"{int(count):,} rows, {size / 1e6:,.0f} MB: {found}", flush=True)


if __name__ == "__main__":
    main()
