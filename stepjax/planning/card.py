"""The memory that a run needs on one GPU: ``stepjax plan --gpu=80GB``.

The programs of a run are traced for one device, and `live` adds up what each needs at
its fullest moment. Nothing is compiled and no GPU is needed, so the figures are
arithmetic. Where a program does not fit, settings are lowered one after the other, in
the order of what they cost, until it does.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator

import jax

from stepjax.lm import lora
from stepjax.planning import live, programs
from stepjax.run.text_table import text_table
from stepjax.settings import MeshShape, Settings

GIB = 2**30
# Share of a card that programs may use: what JAX reserves by default, and the most that
# we advise, since the driver, cuBLAS and the compiler need the rest.
RESERVED, MOST = 0.75, 0.9
_RANK = 16  # of the adapters that are advised
COLUMNS = (
    *("parameters", "moments", "caches", "gradients, copies", "activations"),
    *("logits", "other"),
)


def plan(
    settings: Settings,
    memory: int,
    stages: tuple[str, ...],
    *,
    suggest: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Returns the plan of a run on one card as text.

    Args:
      settings: of the run; its mesh is taken to be one device.
      memory: of the card, bytes.
      stages: of "sft", "dpo" and "search".
      suggest: whether to look for settings with which each program fits.
      say: called with a line before each program that is traced.

    Raises:
      ValueError: when the settings do not tell the model's shape.
    """
    settings = dataclasses.replace(
        settings,
        mesh=MeshShape(1, 1, 1),
        search=dataclasses.replace(settings.search, tensor=1),
    )
    shape = programs.model_config(settings)
    layers, head = programs.weights_of(shape)
    count = layers + head * (1 if shape.tie_embeddings else 2)
    rows, advice = [], []
    most = MOST * memory
    for stage in stages:
        say(f"tracing {stage}")
        for program, needs in needed(settings, stage):
            total = sum(needs.values())
            rows.append(_row(program.name, needs, memory))
            if suggest and total > most:
                say(f"looking for settings with which {program.name!r} fits")
                advice.append(_lowered(settings, stage, program.name, most))
    given, usual = _gib(most), _gib(RESERVED * memory)
    parts = [
        f"one card of {memory / GIB:.0f} GiB: {count / 1e9:.2f} billion parameters, "
        "no mesh. Arithmetic, not compiled: a GPU was not asked.",
        text_table(rows),
        *advice,
        f"JAX takes {RESERVED:.0%} of a card ({usual} GiB) unless "
        f"XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; 'at {MOST}' means that a "
        f"program fits with XLA_PYTHON_CLIENT_MEM_FRACTION={MOST} ({given} GiB) only.",
        "For a model of 135 million parameters, a compiler for TPU needs 6 to 11 % "
        "more than this arithmetic says, and 29 % more for judgments, because it pads "
        "heads of 64 numbers to 128 (docs/gpu.md). XLA for GPU may differ as well, so "
        "leave room.",
    ]
    return "\n\n".join(parts)


def needed(
    settings: Settings, stage: str
) -> Iterator[tuple[programs.Program, dict[str, int]]]:
    """Yields each program of a stage and its bytes by the names of `COLUMNS`."""
    shape = programs.model_config(settings)
    device = jax.devices()[:1]
    for program in programs.programs(settings, device, (stage,)):
        matrices: set[tuple[int, ...]] = set()

        def of_argument(path: str, aval, matrices=matrices) -> str:
            if "opt_state" in path:
                return "moments"
            if path.endswith((".key", ".value")):
                return "caches"
            if re.search(r"\['[a-z_]+'\]", path):  # a dict: a tree of parameters
                matrices |= {aval.shape, aval.shape[1:]}
                return "parameters"
            return "other"

        def of_result(aval, matrices=matrices) -> str:
            own = getattr(aval, "shape", ())
            if own in matrices and len(own) > 1:
                return "gradients, copies"
            return "logits" if shape.vocab_size in own else "activations"

        needs = live.fullest(program.traced, of_argument, of_result)
        needs["caches"] = needs.get("caches", 0) + program.beside
        yield program, needs


def _row(name: str, needs: dict[str, int], memory: int) -> dict[str, str]:
    total = sum(needs.values())
    fits = "NO"
    if total <= RESERVED * memory:
        fits = "yes"
    elif total <= MOST * memory:
        fits = f"at {MOST}"
    row = {"program (GiB)": name}
    row |= {column: _gib(needs.get(column, 0)) for column in COLUMNS}
    return row | {"total": _gib(total), "fits": fits}


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def _lowered(settings: Settings, stage: str, name: str, most: float) -> str:
    """Returns a sentence about the settings with which a program fits, if any do."""
    change = _training if stage in ("sft", "dpo") else _sampling
    tried = []
    for text, lower in change(settings, name):
        total = next(
            (sum(n.values()) for p, n in needed(lower, stage) if p.name == name), 0
        )
        tried.append(f"{text} ({_gib(total)} GiB)")
        if total <= most:
            return f"{name} does not fit. Lowered so far, it does: {', '.join(tried)}."
    after = f" after {', '.join(tried)}" if tried else ""
    return (
        f"{name} does not fit{after}. Take a smaller model, a larger card, or several "
        "(mesh.fsdp)."
    )


def _training(settings: Settings, name: str) -> Iterator[tuple[str, Settings]]:
    """Yields settings that need less memory to train, each lower than the last."""
    shape = settings.shape
    if shape.dtype != "bfloat16":
        settings = _with(settings, "shape", dtype="bfloat16")
        yield "model.dtype='bfloat16'", settings
    if shape.remat != "full":
        settings = _with(settings, "shape", remat="full")
        yield "model.remat='full'", settings
    if settings.dpo.loss.reference == "live" and name == "dpo":
        loss = dataclasses.replace(settings.dpo.loss, reference="precomputed")
        settings = _with(settings, "dpo", loss=loss)
        yield "dpo.reference='precomputed'", settings
    batch = settings.dpo.batch_size
    if name == "sft":
        batch = max(phase.batch_size for phase in settings.sft.phases)
    parts = settings.train.micro_batches
    while parts < batch:
        parts = min(2 * parts, batch)
        settings = _with(settings, "train", micro_batches=parts)
        yield f"train.micro_batches={parts}", settings
    if settings.train.optimizer_dtype == "float32" and name != "dpo: reference":
        settings = _with(settings, "train", optimizer_dtype="bfloat16")
        yield "train.optimizer_dtype='bfloat16'", settings
    if shape.adapters is None:
        rank = min(_RANK, lora.largest_rank(programs.model_config(settings)))
        adapters = lora.Options(rank, 2.0 * rank)
        settings = _with(settings, "shape", adapters=adapters)
        yield f"lora.rank={rank}", settings


def _sampling(settings: Settings, name: str) -> Iterator[tuple[str, Settings]]:
    """Yields settings that need less memory to sample, each lower than the last."""
    if settings.shape.dtype != "bfloat16":
        settings = _with(settings, "shape", dtype="bfloat16")
        yield "model.dtype='bfloat16'", settings
    rows = settings.judge.rows
    while name == "judge: judgments" and rows > settings.search.width - 1:
        rows = max(rows // 2, settings.search.width - 1)
        settings = _with(settings, "judge", rows=rows)
        yield f"judge.rows={rows}", settings
    slots = settings.search.slots
    while slots > 1:
        slots = slots // 2
        settings = _with(settings, "search", slots=slots)
        yield f"search.slots={slots}", settings
    if settings.search.weights == "full":
        settings = _with(settings, "search", weights="int8")
        yield "search.weights='int8'", settings


def _with(settings: Settings, section: str, **changes) -> Settings:
    changed = dataclasses.replace(getattr(settings, section), **changes)
    return dataclasses.replace(settings, **{section: changed})
