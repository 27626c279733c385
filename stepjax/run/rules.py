"""What settings must be together; `ranges` says what each may be.

A rule names a setting, its value, what is expected, and whether the value is that. Only
the standard library is needed.
"""

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from stepjax.lm import addresses
from stepjax.own_files import in_utf8

_LONGEST = 100_000  # characters of a text
SMALLEST = 1e-30  # smaller numbers are taken for 0, or divide to infinity, in float32


class Range(NamedTuple):
    """The numbers from `least` to `most` that float32 tells from the limits and from 0.

    Attributes:
      least: the smallest.
      most: the largest.
      above: `least` itself is not allowed.
      below: `most` itself is not allowed.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if value and abs(value) < SMALLEST:
            return False
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and not (self.below and as_float32(value) >= self.most)

    def __str__(self) -> str:
        if self.above:
            return f"above {_number(self.least)} and at most {_number(self.most)}"
        until = "to below" if self.below else "to"
        return f"{_number(self.least)} {until} {_number(self.most)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def as_float32(value: float) -> float:
    """Returns the float32 next to a number that float32 can hold."""
    return struct.unpack("f", struct.pack("f", value))[0]


def remark(value: Any) -> str:
    """Returns why float32 cannot take a number that seems right; "" for all others."""
    if not isinstance(value, float) or not math.isfinite(value) or value == 0:
        return ""
    if abs(value) < SMALLEST:
        return f" (a number below {SMALLEST:g} is taken for 0)"
    if 0 < abs(value) < 1 and abs(as_float32(value)) == 1:
        return " (float32 takes it for 1)"
    return ""


SOME = Range(1, 100_000_000)
ADAPTED = ("query", "key", "value", "out", "gate", "up", "down")  # lora.layers
# Name of a setting, its value, what is expected, and whether the value is that.
Rule = tuple[str, Any, str, bool]


def between(config: Any) -> Iterator[Rule]:
    """Yields the rules between settings.

    Args:
      config: all settings, see `stepjax.config.default`.
    """
    for name, text in _texts(config):
        yield (
            name,
            text,
            f"text that UTF-8 can hold, without the character NUL, of at most "
            f"{_LONGEST:,} characters",
            len(text) <= _LONGEST and "\0" not in text and in_utf8(text),
        )
    yield from _phases(config)
    yield from _shape(config.model)
    yield from _addresses(config)
    yield from _counts(config)
    yield from _adapters(config.lora)
    yield from _controls(config)
    yield from _search(config)
    yield from _updates(config)
    if config.data.make_eft:
        yield from _initial_data(config)


def _texts(section: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Yields name and value of every setting that is a text, those of lists too."""
    items = section.items() if hasattr(section, "items") else enumerate(section)
    for key, value in items:
        name = f"{before}[{key}]" if isinstance(key, int) else f"{before}.{key}"
        if isinstance(value, str):
            yield name.removeprefix("."), value
        elif hasattr(value, "items") or isinstance(value, tuple | list):
            yield from _texts(value, name)


def every_phase(config: Any) -> list[tuple[str, Any]]:
    """Returns (place, phase) of the phases of SFT, of the PRM, and of the policy."""
    every = [(f"sft.phases[{n}]", p) for n, p in enumerate(config.sft.phases)]
    return [*every, ("prm.phase", config.prm.phase), ("mcts.phase", config.mcts.phase)]


def _phases(config: Any) -> Iterator[Rule]:
    names = [phase.name for phase in config.sft.phases]
    yield (
        "names of sft.phases",
        names,
        "at least one phase, and every name once",
        0 < len(set(names)) == len(names),
    )
    for place, phase in every_phase(config):
        epochs, steps = phase.epochs, phase.steps
        yield (
            f"{place}.epochs, {place}.steps",
            (epochs, steps),
            "exactly one of them above 0",
            (epochs > 0) != (steps > 0),
        )
        shares = phase.ift, phase.eft
        good = not any(map(math.isnan, shares)) and sum(shares) > 0
        yield f"{place}.ift, {place}.eft", shares, "a sum above 0", good


def _updates(config: Any) -> Iterator[Rule]:
    """Yields the rules of optimizers, and of how many updates they make."""
    optimizers = [
        (f"{place}.optimizer", phase.optimizer, phase.steps)
        for place, phase in every_phase(config)
    ]
    counts = [count for count in config.dpo.updates if type(count) is int]
    optimizers.append(("dpo.optimizer", config.dpo.optimizer, min(counts, default=0)))
    for place, optimizer, steps in optimizers:
        rate, decay = optimizer.learning_rate, optimizer.weight_decay
        yield (
            f"{place}.learning_rate, {place}.weight_decay",
            (rate, decay),
            "a product below 1, or every update would turn the sign of the parameters",
            not rate * decay >= 1,  # NaN is refused by its range
        )
        warmup = optimizer.warmup_steps
        yield (
            f"{place}.warmup_steps",
            warmup,
            f"less than the {steps} updates, or it would never reach its learning rate",
            steps <= 0 or warmup < steps,
        )


def _search(config: Any) -> Iterator[Rule]:
    """Yields the rules of searches whose candidates could never make a pair."""
    search = config.search
    yield (
        "search.temperature",
        search.temperature,
        "above 0, or all candidates of a step would be the same",
        search.temperature != 0 or is_own(search.propose_by),
    )
    yield (
        "search.redraw",
        search.redraw,
        f"0 with search.propose_by={search.propose_by!r}, whose samples are its own",
        not (search.redraw and is_own(search.propose_by)),
    )
    yield (
        "search.max_step_tokens",
        search.max_step_tokens,
        f"less than search.context_tokens={search.context_tokens}, which also has to "
        "hold the problem",
        search.max_step_tokens < search.context_tokens,
    )


def _shape(model: Any) -> Iterator[Rule]:
    """Yields the rules between the numbers of a random model's shape."""
    heads, groups, size = model.num_heads, model.num_kv_heads, model.head_dim
    yield (
        "model.num_heads",
        heads,
        f"a multiple of model.num_kv_heads={groups}",
        groups < 1 or heads % groups == 0,
    )
    yield (
        "model.head_dim",
        size,
        "an even number, because RoPE rotates pairs of numbers",
        size % 2 == 0,
    )
    yield (
        "model.init",
        model.init,
        "'random', 'hf:DIR' (a Hugging Face folder) or 'gguf:FILE'",
        model.init == "random" or _is_pretrained(model.init),
    )


def _addresses(config: Any) -> Iterator[Rule]:
    """Yields the rules of models and tokenizers that are not on this computer."""
    models = {"model.init": config.model.init}
    if config.data.make_eft and config.teacher.backend == "local":
        models["teacher.model"] = config.teacher.model
    for name, value in {**models, "tokenizer": config.tokenizer}.items():
        kind, _, source = value.partition(":") if name in models else ("", "", value)
        if kind == "gguf":
            expected = (
                "'gguf:' and a file on a disk of this computer (copy it here first), "
                "because it is mapped into memory"
            )
            yield name, value, expected, not addresses.is_address(source)
        else:
            expected = (
                "a path on this computer (download it first), or on object storage, "
                "which begins with gs://, s3:// or az://"
            )
            yield name, value, expected, not addresses.is_unreachable(source)


def _is_pretrained(name: str) -> bool:
    """Whether a name has the form of a model in files, "hf:DIR" or "gguf:FILE"."""
    kind, _, source = name.partition(":")
    return kind in ("hf", "gguf") and source != ""


def _counts(config: Any) -> Iterator[Rule]:
    """Yields the rules of lists of numbers and of the mesh."""
    questions, iterations = config.data.questions, config.iterations
    yield (
        "data.questions",
        questions,
        "numbers from 1 to 100,000,000, one per iteration (the last one also counts "
        "for further iterations), or () for all questions of a file",
        all(type(count) is int and count in SOME for count in questions)
        and (len(questions) > 0 or iterations == 0 or config.data.world == ""),
    )
    axes = [(f"mesh.{name}", config.mesh[name]) for name in ("data", "fsdp", "tensor")]
    for name, size in axes:
        good = size == -1 or size in Range(1, 1_000_000)
        yield name, size, "-1 (what the other axes leave), or 1 to 1,000,000", good
    sizes = tuple(size for _, size in axes)
    names = "mesh.data, mesh.fsdp, mesh.tensor"
    yield names, sizes, "at most one -1", sizes.count(-1) <= 1


def _adapters(lora: Any) -> Iterator[Rule]:
    """Yields the rule for lora.layers, the names of the adapted matrices."""
    names = lora.layers
    yield (
        "lora.layers",
        names,
        f"at least one of {ADAPTED}, each at most once",
        0 < len(names) == len(set(names)) and set(names) <= set(ADAPTED),
    )


def is_own(setting: str) -> bool:
    """Whether a setting names a function of one's own, "module:function"."""
    return ":" in setting


def _controls(config: Any) -> Iterator[Rule]:
    """Yields the rules of numbers of updates, and of SFT."""
    updates, iterations = config.dpo.updates, config.iterations
    numbers = all(type(count) is int and count in SOME for count in updates)
    enough = numbers and len(updates) >= iterations
    yield (
        "dpo.updates",
        updates,
        f"one number above 0 for each of {iterations} iterations, or ()",
        enough or (not updates and config.improve_by != "sft"),
    )
    said = config.sft.verdict_words
    yield (
        "sft.verdict_words",
        said,
        "a tuple of words without commas, such as ('right', 'wrong'), or ()",
        all(isinstance(w, str) and w and w == w.strip() and "," not in w for w in said),
    )
    named = config.eval.benchmarks
    yield (
        "eval.benchmarks",
        named,
        "a tuple of files, such as ('gsm8k.jsonl',), or ()",
        all(isinstance(name, str) and name for name in named),
    )
    yield (
        "sft.from_policy",
        config.sft.from_policy,
        "False without data.make_eft, which makes the policy",
        config.data.make_eft or not config.sft.from_policy,
    )
    yield (
        "data.make_eft",
        config.data.make_eft,
        "False with data.world='backwards', which makes its comparisons itself",
        not config.data.make_eft or config.data.world != "backwards",
    )
    taught, unseen = config.data.taught_results, config.data.unseen_results
    yield (
        "data.taught_results, data.unseen_results",
        (taught, unseen),
        "at most 10 together, the results of a block",
        taught + unseen <= 10,
    )


def _initial_data(config: Any) -> Iterator[Rule]:
    """Yields the rules of a run that makes its EFT rows."""
    world, judge, teacher = config.data.world, config.judge, config.teacher
    policy, reward = config.mcts.phase, config.prm.phase
    share = config.mcts.undecided_share
    yield (
        "judge.kind",
        judge.kind,
        "'comparisons' with data.make_eft, because the teacher compares steps",
        judge.kind == "comparisons",
    )
    yield (
        "teacher.backend",
        teacher.backend,
        "'http', 'local' or 'replay', because only a world (data.world) teaches",
        teacher.backend != "world" or world != "",
    )
    yield (
        "prm.labels",
        config.prm.labels,
        "a file or 'rollouts', because only a world (data.world) knows the gold",
        config.prm.labels != "gold" or world != "",
    )
    yield (
        "data.corrupted_count",
        config.data.corrupted_count,
        "0, because only a world (data.world) corrupts steps",
        not config.data.corrupted_count or world != "",
    )
    yield (
        "mcts.undecided_share",
        share,
        "0 unless teacher.undecided_margin is above 0",
        not share or teacher.undecided_margin > 0,
    )
    yield (
        "teacher.model",
        teacher.model,
        "'' for M0, 'hf:DIR' or 'gguf:FILE' with teacher.backend='local'",
        teacher.backend != "local"
        or not teacher.model
        or _is_pretrained(teacher.model),
    )
    yield (
        "mcts.phase.ift, mcts.phase.eft",
        (policy.ift, policy.eft),
        "ift above 0 and eft 0, because the policy learns from IFT rows alone",
        policy.ift > 0 and not policy.eft,
    )
    yield (
        "prm.phase.ift, prm.phase.eft",
        (reward.ift, reward.eft),
        "ift 0 and eft above 0, because step labels take the place of EFT rows",
        reward.eft > 0 and not reward.ift,
    )
    yield (
        "mcts.temperature",
        config.mcts.temperature,
        "above 0, or all samples of an expansion would be the same",
        config.mcts.temperature != 0,
    )
