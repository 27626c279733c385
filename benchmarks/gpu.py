"""Every measurement on a GPU, in one call of less than 10 minutes, into one file.

    python benchmarks/gpu.py --out=gpu.json --model=gguf:FILE --data=DIR
    python benchmarks/gpu.py --out=cpu.json --small      # minutes, on a CPU

Four parts, each a process of its own, one after the other; the file is written anew
after each of them, and a part that takes too long is stopped and named (--seconds gives
all of them more time):

  check       stepjax check
  rows        step-DPO on whole trajectories as forest rows, against the same pairs with
              one shared context each, and against steps one by one: seconds, FLOPs,
              share of the FLOP cut that is kept, tokens per second, share of the card's
              peak, and the memory that the card reports beside the arithmetic of
              `stepjax plan --gpu`
  quickstart  configs/quickstart.py, all iterations
  words       one iteration of SmolLM2 on word problems (docs/real_model.md says where
              --model and --data come from), on fewer problems than the config has
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Part → the most seconds that it may take of `_SECONDS`; not all need so many.
PARTS = {"check": 90, "rows": 200, "quickstart": 200, "words": 240}
# Peak of dense bfloat16 products with float32 sums in TFLOP/s, from NVIDIA's data
# sheets; the first name that the device's name contains counts.
PEAKS = {
    **{"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121},
    **{"RTX 4090": 165, "RTX 3090": 71, "A10": 125},
}
STEPS = 8  # of a trajectory
_SECONDS = 570


def main() -> None:
    """Runs the parts and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="gpu.json")
    parser.add_argument("--model", help="model.init of the part words")
    parser.add_argument("--data", help="folder of the part words")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="for all parts")
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--part", choices=PARTS, action="append", help="only these")
    parser.add_argument("--rows-into", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows_into:
        rows(options.small, pathlib.Path(options.rows_into))
        return
    end = time.monotonic() + options.seconds
    found = {"machine": machine(), "small": options.small}
    write(found, options.out)  # a folder that is not there is named now
    with tempfile.TemporaryDirectory() as folder:
        for part in options.part or PARTS:
            most = PARTS[part] * options.seconds / _SECONDS
            left = min(most, end - time.monotonic())
            found[part] = measured(part, options, pathlib.Path(folder), left)
            write(found, options.out)
            print(f"{part}: {found[part]['ended']}, {found[part]['seconds']} s")
    print(f"written: {options.out}")


def write(found: dict, file: str) -> None:
    """Writes what was found so far."""
    pathlib.Path(file).write_text(f"{json.dumps(found, indent=1)}\n", "utf-8")


def machine() -> dict:
    """Returns the processor, the card and its driver, without JAX."""
    asked = "name,memory.total,driver_version,power.limit"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        card = subprocess.run(command, capture_output=True, text=True, timeout=30)
        card = card.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        card = "no nvidia-smi"
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "card": card,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def measured(part: str, options, folder: pathlib.Path, seconds: float) -> dict:
    """Runs a part in a process; returns what it measured, and how it ended."""
    workdir = folder / part
    stepjax = [sys.executable, "-m", "stepjax"]
    run = [*stepjax, "run", f"--workdir={workdir}"]
    if part == "check":
        command = [*stepjax, "check"]
    elif part == "rows":
        command = [sys.executable, __file__, f"--rows-into={folder / 'rows.json'}"]
        command += ["--small"] * options.small
    elif part == "quickstart":
        command = [*run, f"--config={ROOT}/configs/quickstart.py"]
        if options.small:
            command = [*run, f"--config={ROOT}/tests/tiny_config.py"]
    elif not (options.model and options.data):
        return {"ended": "left out: --model and --data are not given", "seconds": 0}
    else:
        file = f"{ROOT}/configs/smollm2_gpu.py:{options.model},{options.data}"
        command = [*run, f"--config={file}", *_fewer(options.small)]
    if seconds <= 5:
        return {"ended": "left out: no time is left", "seconds": 0}
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = folder / f"{part}.log"
    with open(log, "w", encoding="utf-8") as out:
        try:
            status = subprocess.run(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=seconds,
            ).returncode
            ended = "finished" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
    facts = {"ended": ended, "seconds": round(time.monotonic() - began, 1)}
    facts["command"] = [word.replace(str(folder), "DIR") for word in command]
    if part == "rows" and (folder / "rows.json").exists():
        facts["layouts"] = json.loads((folder / "rows.json").read_text("utf-8"))
    metrics = workdir / "metrics.jsonl"
    if metrics.exists():
        lines = metrics.read_text("utf-8").splitlines()
        facts["metrics"] = [json.loads(line) for line in lines]
    facts["printed"] = log.read_text("utf-8").splitlines()[-60:]
    return facts


def _fewer(small: bool) -> list[str]:
    """Returns the settings with which one iteration of words fits its time.

    The policy learns from all its rows, since one of few updates samples no right steps
    and makes no EFT rows. With `small` these are made by rule, without a policy.
    """
    settings = {
        "iterations": 1,
        "data.questions": "(4,)" if small else "(96,)",
        "data.heldout_count": 4 if small else 20,
        "data.test_count": 4 if small else 100,
        "eval.search_count": 4 if small else 8,
        "sft.phases[0].steps": 2 if small else 60,
        "dpo.optimizer.warmup_steps": 0,  # with few pairs there are few updates
    }
    if small:
        settings |= {"data.make_eft": False, "sft.from_policy": False}
        settings |= {"data.ift_count": 16, "data.drills": 16, "data.eft_count": 8}
        settings |= {"sft.phases[0].batch_size": 4, "search.slots": 4}
        settings |= {"sft.phases[0].optimizer.warmup_steps": 0}
        settings |= {"dpo.batch_size": 2, "dpo.epochs": 1}
    else:
        settings |= {"mcts.questions": 120, "data.corrupted_count": 120}
    return [f"--config.{name}={value}" for name, value in settings.items()]


def rows(small: bool, file: pathlib.Path) -> None:
    """Measures the layouts of the same pairs; writes a record of each.

    Args:
      small: a tiny model in float32 and short rows, for a CPU.
      file: written anew after each layout, so that what is stopped leaves something.
    """
    import jax

    from stepjax.lm import attention
    from stepjax.lm import model as lm

    shape = {  # SmolLM2-135M
        **{"vocab_size": 49152, "hidden_size": 576, "num_layers": 30, "num_heads": 9},
        **{"num_kv_heads": 3, "head_dim": 64, "intermediate_size": 1536},
        **{"qkv_bias": False, "tie_embeddings": True, "dtype": "bfloat16"},
    }
    lengths, tokens = (512, 2048), 16384
    if small:
        shape |= {"vocab_size": 512, "hidden_size": 64, "num_layers": 2}
        shape |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
        shape |= {"intermediate_size": 128, "dtype": "float32"}
        lengths, tokens = (128,), 256
    found = []
    for kind in ("chunks", "cudnn"):
        try:
            attention.choose(kind, None, shape["dtype"], shape["head_dim"])
        except ValueError as error:
            found.append({"attention": kind, "refused": str(error)})
            file.write_text(json.dumps(found), "utf-8")
            continue
        config = lm.ModelConfig(**shape, remat="full", attention=kind)
        for length in lengths:
            problems = trajectories(length, tokens // length, shape["vocab_size"])
            forest = None
            for name in ("forest", "a context per pair", "one by one"):
                record = layout(config, name, problems, length, 3 if small else 8)
                forest = forest or record
                faster = record["seconds"] / forest["seconds"]
                cut = record["tflop"] / forest["tflop"]
                record["forest_is_faster_by"] = faster
                record["flops_of_forest_are_fewer_by"] = cut
                record["share_of_the_cut_that_is_kept"] = faster / cut
                found.append(record)
                file.write_text(json.dumps(found), "utf-8")
            jax.clear_caches()


def trajectories(length: int, count: int, vocab: int) -> list[list]:
    """Returns the pairs of `count` solutions; the tree of one solution fills a row."""
    import numpy as np

    from stepjax import forest

    rng = np.random.default_rng(0)
    step = length // (2 * STEPS + 2)
    prompt = length - 2 * STEPS * step

    def ids(size: int) -> tuple[int, ...]:
        return tuple(rng.integers(8, vocab, size).tolist())

    problems = []
    for _ in range(count):
        context, pairs = ids(prompt), []
        for _ in range(STEPS):
            pair = forest.IdPair(context, ids(step), ids(step))
            context += pair.chosen
            pairs.append(pair)
        problems.append(pairs)
    return problems


def batch_of(name: str, problems: list[list], length: int):
    """Returns an update's batch; micro-batches have about as many rows as forests."""
    import jax
    import numpy as np

    from stepjax import dpo, forest, pair_trees

    def trees(group: list[list]) -> list:
        found = []
        for place, pair in enumerate(pair for pairs in group for pair in pairs):
            if name == "a context per pair":
                found.append(pair_trees.trajectory_tree([pair], 2 * place))
                continue
            for side, step in enumerate((pair.chosen, pair.rejected)):
                weights = [0.0] * len(pair.context) + [1.0] * len(step)
                path = pair.context + step
                found.append(forest.path_tree(path, weights, 2 * place + side))
        return sorted(found, key=lambda tree: -len(tree.tokens))

    if name == "forest":
        parts = [
            [
                pair_trees.trajectory_tree(pairs, 2 * STEPS * number)
                for number, pairs in enumerate(problems)
            ]
        ]
    else:
        ways = min(4, len(problems))
        parts = [trees(problems[first::ways]) for first in range(ways)]
    sizes = np.max([forest.size(part, length) for part in parts], axis=0).tolist()
    pairs = STEPS * len(problems) // len(parts)
    batches = []
    for part in parts:
        packed = forest.pack(part, length, rows=sizes[0], scored=sizes[1])
        real = packed.weight > 0
        counts = np.bincount(packed.segment[real], minlength=2 * pairs)
        counts = counts.astype(np.float32)
        batches.append(dpo.Batch(packed, counts, np.zeros_like(counts)))
    return jax.tree.map(lambda *x: np.stack(x), *batches)


def layout(config, name: str, problems: list[list], length: int, rounds: int) -> dict:
    """Measures updates on pairs in one layout; returns what was found."""
    import functools

    import jax
    import numpy as np

    from stepjax import dpo
    from stepjax.lm import model as lm
    from stepjax.lm import sharding, train
    from stepjax.planning import flops, live

    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    model = lm.Decoder(config, mesh)
    params = train.init_params(model, mesh, seed=0)
    optimizer = train.make_optimizer(train.OptimizerOptions(1e-6), 100)
    loss = functools.partial(dpo.loss, model=model, options=dpo.Options())
    update = train.make_update(
        loss, optimizer, train.state_shardings(params, optimizer)
    )
    state = train.init_state(params, optimizer)
    batch = batch_of(name, problems, length)
    tokens = int(batch.rows.tokens.size)
    placed = train.put_batch(mesh, batch)
    traced = update.trace(state, None, placed)
    tflop = flops.count(traced, 1).products / 1e12
    needs = live.fullest(traced, lambda path, aval: "", lambda aval: "")
    began = time.perf_counter()
    state, metrics = jax.block_until_ready(update(state, None, placed))
    first, value = time.perf_counter() - began, float(metrics["loss"])
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(update(state, None, placed))
        seconds.append(time.perf_counter() - began)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    middle = statistics.median(seconds)
    peak = next((v for k, v in PEAKS.items() if k in device.device_kind), None)
    rate = tflop / middle
    return {
        "device": device.device_kind,
        "attention": config.attention,
        "layout": name,
        "row_length": length,
        "rows": list(batch.rows.tokens.shape),
        "pairs": STEPS * len(problems),
        "tokens": tokens,
        "loss": value,
        "tflop": tflop,
        "seconds": middle,
        "all_seconds": [round(x, 5) for x in seconds],
        "compiling_seconds": first - middle,
        "tokens_per_second": tokens / middle,
        "tflop_per_second": rate,
        "share_of_peak": rate / peak if peak else None,
        "arithmetic_gib": float(np.sum(list(needs.values()))) / 2**30,
        # Of the process so far: a layout that needs less than an earlier one shows the
        # earlier one's.
        "reported_peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30 or None,
    }


if __name__ == "__main__":
    main()
