"""What every setting may be: one table, checked before anything heavy is imported.

`check` looks at a whole config and names everything that is wrong at once. Nothing that
takes long is imported here, so that a mistyped number costs a tenth of a second.
Limits above are far beyond what a run needs: they catch a slip such as 1e9 before it
takes the memory of a computer.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stepjax.own_files import did_you_mean

WORLDS = ("", "arithmetic", "word_problems")  # data.world
IMPROVE_BY = ("dpo", "sft")  # improve_by
KINDS = ("comparisons", "ratings")  # judge.kind
RULES = ("uct", "puct")  # mcts.rule
BACKENDS = ("http", "local", "replay", "world")  # teacher.backend


class Range(NamedTuple):
    """The numbers from `least` to `most`.

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
        low = value > self.least if self.above else value >= self.least
        return low and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        if self.above:
            return f"above {_number(self.least)} and at most {_number(self.most)}"
        until = "to below" if self.below else "to"
        return f"{_number(self.least)} {until} {_number(self.most)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


_MANY = 100_000_000  # rows, problems, updates
_TOKENS = 4_194_304  # tokens of a sequence
_SHARE, _SHARE_BELOW_1 = Range(0, 1), Range(0, 1, below=True)
_NUCLEUS, _WARMTH = Range(0, 1, above=True), Range(0, 100)
_COUNT, _SOME = Range(0, _MANY), Range(1, _MANY)
_LENGTH = Range(1, _TOKENS)

# Setting → the numbers or the words that it may be.
SETTINGS: dict[str, Range | tuple[str, ...]] = {
    "seed": Range(0, 2**32 - 1),
    "iterations": Range(0, 1000),
    "improve_by": IMPROVE_BY,
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "attention", "dots"),
    "model.attention": ("auto", "chunks", "kernel", "cudnn"),
    "model.vocab_size": Range(0, 16_777_216),
    "model.hidden_size": Range(1, 131_072),
    "model.num_layers": Range(1, 1000),
    "model.num_heads": Range(1, 4096),
    "model.num_kv_heads": Range(1, 4096),
    "model.head_dim": Range(2, 4096),
    "model.intermediate_size": Range(1, 1_048_576),
    "model.rope_theta": Range(0, 1e12, above=True),
    "model.rms_norm_eps": Range(0, 0.1, above=True),
    "model.embedding_std": Range(0, 100, above=True),
    "model.init_std": Range(0, 100, above=True),
    "prompts.chat": ("none", "template"),
    "data.world": WORLDS,
    "data.operations": Range(1, 9),
    "data.guessed_share": _SHARE,
    "data.unseen_blocks": Range(0, 24),
    "data.ift_count": _COUNT,
    "data.ift_variants": Range(0, 1000),
    "data.drills": _COUNT,
    "data.eft_count": _COUNT,
    "data.heldout_count": _COUNT,
    "data.test_count": _COUNT,
    "data.explanations": ("short", "worked", "none"),
    "data.corrupted_count": _COUNT,
    "prm.labels_count": _COUNT,
    "prm.heldout_count": _COUNT,
    "prm.language_weight": Range(0, 1000),
    "rollouts.problems": _COUNT,
    "rollouts.solutions": Range(1, 10_000),
    "rollouts.samples": Range(1, 100_000),
    "rollouts.temperature": _WARMTH,
    "rollouts.top_p": _NUCLEUS,
    "rollouts.max_tokens": _LENGTH,
    "mcts.questions": _SOME,
    "mcts.width": Range(2, 1000),
    "mcts.temperature": _WARMTH,
    "mcts.top_p": _NUCLEUS,
    "mcts.iterations": Range(1, 1_000_000),
    "mcts.depth": Range(0, 1000),
    "mcts.max_steps": Range(1, 1000),
    "mcts.rule": RULES,
    "mcts.exploration": Range(0, 1_000_000),
    "mcts.min_margin": _SHARE,
    "mcts.pairs_per_layer": Range(1, 10_000),
    "mcts.pairs_per_node": Range(1, 10_000),
    "mcts.undecided_share": _SHARE_BELOW_1,
    "mcts.remember_tokens": _COUNT,
    "teacher.backend": BACKENDS,
    "teacher.temperature": _WARMTH,
    "teacher.max_tokens": _LENGTH,
    "teacher.concurrency": Range(1, 10_000),
    "teacher.requests_per_minute": Range(0, 1_000_000),
    "teacher.token_budget": Range(0, 10**15),
    "teacher.timeout": Range(0.001, 86_400),
    "teacher.retries": Range(0, 1000),
    "teacher.undecided_margin": _SHARE,
    "train.row_length": _LENGTH,
    "train.micro_batches": Range(1, 65_536),
    "train.checkpoint_every": _COUNT,
    "train.log_every": _SOME,
    "train.on_nonfinite": ("stop", "skip"),
    "sft.verdict_weight": Range(0, 1000),
    "search.width": Range(2, 1000),
    "search.temperature": _WARMTH,
    "search.top_p": _NUCLEUS,
    "search.max_expansions": Range(1, 1_000_000),
    "search.on_tie": ("back", "append"),
    "search.propose_by": ("self",),  # or a function, see `OWN`
    "search.max_step_tokens": _LENGTH,
    "search.context_tokens": _LENGTH,
    "search.slots": Range(1, 1_000_000),
    "search.tensor": Range(0, 4096),
    "judge.kind": KINDS,
    "judge.mode": ("generate", "logprob"),
    "judge.by": ("self", "random", "oracle"),  # or a function, see `OWN`
    "judge.score": ("sum", "consistent", "single"),
    "judge.schedule": ("full", "knockout", "swiss"),
    "judge.temperature": _WARMTH,
    "judge.top_p": _NUCLEUS,
    "judge.max_tokens": _LENGTH,
    "judge.context_tokens": _LENGTH,
    "judge.rows": Range(1, 1_000_000),
    "srlm.max_tokens": _LENGTH,
    "pairs.min_margin": Range(1, 1_000_000),
    "dpo.beta": Range(0, 1000, above=True),
    "dpo.label_smoothing": Range(0, 0.5, below=True),
    "dpo.nll_weight": Range(0, 1000),
    "dpo.reference": ("precomputed", "live"),
    "dpo.batch_size": Range(1, 1_000_000),
    "dpo.epochs": Range(1, 10_000),
    "eval.max_tokens": _LENGTH,
    "eval.search_count": _COUNT,
}
OWN = ("judge.by", "search.propose_by")  # may also name a "module:function"
_OPTIMIZER: dict[str, Range | tuple[str, ...]] = {
    "learning_rate": Range(0, 10, above=True),
    "schedule": ("constant", "cosine"),
    "warmup_steps": _COUNT,
    "final_fraction": _SHARE,
    "b1": _SHARE_BELOW_1,
    "b2": _SHARE_BELOW_1,
    "weight_decay": Range(0, 100),
    "clip_norm": Range(0, 1e9, above=True),
}
_PHASE: dict[str, Range | tuple[str, ...]] = {
    "ift": Range(0, 1_000_000),
    "eft": Range(0, 1_000_000),
    "epochs": Range(0, 10_000),
    "steps": _COUNT,
    "stop_loss": Range(0, 1000),
    "batch_size": Range(1, 1_000_000),
    **{f"optimizer.{name}": allowed for name, allowed in _OPTIMIZER.items()},
}
SETTINGS |= {f"dpo.optimizer.{name}": allowed for name, allowed in _OPTIMIZER.items()}
SETTINGS |= {
    f"{section}.phase.{name}": allowed
    for section in ("prm", "mcts")
    for name, allowed in _PHASE.items()
}

# Name of a setting, its value, what is expected, and whether the value is that.
Rule = tuple[str, Any, str, bool]


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError that names every setting whose value cannot work.

    Args:
      config: all settings, see `stepjax.config.default`.
    """
    found = wrong(config)
    if found:
        raise ValueError("\n".join(found))


def wrong(config: Mapping[str, Any]) -> list[str]:
    """Returns a sentence about every setting whose value cannot work."""
    rules = [
        *_ranges(config),
        *_phases(config),
        *_shape(config.model),
        *_counts(config),
        *_controls(config),
    ]
    if config.data.make_eft:
        rules += _initial_data(config)
    sentences = (
        f"{name}={value!r}; expected {expected}."
        for name, value, expected, good in rules
        if not good
    )
    return list(dict.fromkeys(sentences))


def words(name: str) -> str:
    """Returns what a setting may be, in words; "" where it is a text of any kind.

    Args:
      name: of the setting; of a phase, as "sft.phases[0].steps".
    """
    allowed = SETTINGS.get(name)
    if name.startswith("sft.phases["):
        allowed = _PHASE.get(name.partition("].")[2])
    return "" if allowed is None else _expected(name, allowed)


def _expected(name: str, allowed: Range | tuple[str, ...]) -> str:
    if isinstance(allowed, Range):
        return str(allowed)
    return f"one of {allowed}{', or module:function' if name in OWN else ''}"


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _ranges(config: Any) -> Iterator[Rule]:
    """Yields the rules of the table; a word that nearly fits is suggested."""
    for name, allowed in SETTINGS.items():
        value = _value(config, name)
        yield _rule(name, value, allowed)


def _rule(name: str, value: Any, allowed: Range | tuple[str, ...]) -> Rule:
    expected = _expected(name, allowed)
    if name in OWN and _is_own(value):
        return name, value, expected, True
    if not isinstance(allowed, Range):
        expected += did_you_mean(str(value), allowed)
    return name, value, expected, value in allowed


def _phases(config: Any) -> Iterator[Rule]:
    names = [phase.name for phase in config.sft.phases]
    yield (
        "names of sft.phases",
        names,
        "at least one phase, and every name once",
        0 < len(set(names)) == len(names),
    )
    every = [(f"sft.phases[{n}]", p) for n, p in enumerate(config.sft.phases)]
    for place, phase in every:
        for name, allowed in _PHASE.items():
            yield _rule(f"{place}.{name}", _value(phase, name), allowed)
    every += [("prm.phase", config.prm.phase), ("mcts.phase", config.mcts.phase)]
    for place, phase in every:
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
    init = model.init
    kind, _, source = init.partition(":")
    yield (
        "model.init",
        init,
        "'random', 'hf:DIR' (a Hugging Face folder) or 'gguf:FILE'",
        init == "random" or kind in ("hf", "gguf") and source != "",
    )


def _counts(config: Any) -> Iterator[Rule]:
    """Yields the rules of lists of numbers and of the mesh."""
    questions, iterations = config.data.questions, config.iterations
    yield (
        "data.questions",
        questions,
        "numbers from 1 to 100,000,000, one per iteration (the last one also counts "
        "for further iterations), or () for all questions of a file",
        all(type(count) is int and count in _SOME for count in questions)
        and (len(questions) > 0 or iterations == 0 or config.data.world == ""),
    )
    axes = [(f"mesh.{name}", config.mesh[name]) for name in ("data", "fsdp", "tensor")]
    for name, size in axes:
        good = size == -1 or size in Range(1, 1_000_000)
        yield name, size, "-1 (what the other axes leave), or 1 to 1,000,000", good
    sizes = tuple(size for _, size in axes)
    names = "mesh.data, mesh.fsdp, mesh.tensor"
    yield names, sizes, "at most one -1", sizes.count(-1) <= 1


def _is_own(setting: str) -> bool:
    """Whether a setting names a function of one's own, "module:function"."""
    return ":" in setting


def _controls(config: Any) -> Iterator[Rule]:
    """Yields the rules between settings, mostly of control experiments."""
    judge, updates, world = config.judge, config.dpo.updates, config.data.world
    iterations = config.iterations
    numbers = all(type(count) is int and count in _SOME for count in updates)
    enough = numbers and len(updates) >= iterations
    yield (
        "dpo.updates",
        updates,
        f"one number above 0 for each of {iterations} iterations, or ()",
        enough or (not updates and config.improve_by != "sft"),
    )
    proposed = config.search.propose_by
    yield (
        "judge.by",
        judge.by,
        "'self', or 'random', or 'oracle' in a world (data.world)",
        judge.by != "oracle" or world != "",
    )
    yield (
        "judge.kind",
        judge.kind,
        "'comparisons' with 'module:function' in judge.by or search.propose_by, which "
        "works on single steps",
        judge.kind != "ratings" or not (_is_own(judge.by) or _is_own(proposed)),
    )
    yield (
        "judge.schedule",
        judge.schedule,
        "'full' with judge.by='module:function', which scores all candidates in one "
        "call",
        judge.schedule == "full" or not _is_own(judge.by),
    )
    said = config.sft.verdict_words
    yield (
        "sft.verdict_words",
        said,
        "a tuple of words without commas, such as ('right', 'wrong'), or ()",
        all(isinstance(w, str) and w and w == w.strip() and "," not in w for w in said),
    )
    yield (
        "sft.from_policy",
        config.sft.from_policy,
        "False without data.make_eft, which makes the policy",
        config.data.make_eft or not config.sft.from_policy,
    )
    yield (
        "judge.kind",
        judge.kind,
        "'comparisons' with data.world='word_problems', which makes no ratings",
        judge.kind != "ratings" or world != "word_problems",
    )
    if judge.kind != "ratings":
        return
    rated = "with judge.kind='ratings'"
    yield "judge.by", judge.by, f"'self' {rated}", judge.by == "self"
    yield "judge.mode", judge.mode, f"'generate' {rated}", judge.mode == "generate"
    yield "judge.schedule", judge.schedule, f"'full' {rated}", judge.schedule == "full"
    best = config.pairs.best_beats_all
    words = f"False {rated}: ratings compare nothing"
    yield "pairs.best_beats_all", best, words, not best


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
        "'' for M0, or 'hf:DIR', with teacher.backend='local'",
        teacher.backend != "local"
        or not teacher.model
        or (teacher.model.startswith("hf:") and teacher.model != "hf:"),
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
