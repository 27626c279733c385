"""What every setting may be: one table, checked before anything heavy is imported.

`check` looks at a whole config and names everything that is wrong at once. Nothing that
takes long is imported here, so that a mistyped number costs a tenth of a second.
Limits above are far beyond what a run needs: they catch a slip such as 1e9 before it
takes the memory of a computer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stepjax.lm.limits import NUMBERS
from stepjax.own_files import did_you_mean
from stepjax.run import judge_rules, rules
from stepjax.run.rules import SOME, Range

WORLDS = ("", "arithmetic", "backwards", "word_problems")  # data.world
IMPROVE_BY = ("dpo", "sft")  # improve_by
KINDS = ("comparisons", "ratings")  # judge.kind
RULES = ("uct", "puct")  # mcts.rule
BACKENDS = ("http", "local", "replay", "world")  # teacher.backend


_MANY = 100_000_000  # rows, problems, updates
_TOKENS = 4_194_304  # tokens of a sequence
_SHARE, _SHARE_BELOW_1 = Range(0, 1), Range(0, 1, below=True)
_NUCLEUS, _WARMTH = Range(0, 1, above=True), Range(0, 100)
_COUNT = Range(0, _MANY)
_LENGTH = Range(1, _TOKENS)

_SHAPE = (
    *("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *("intermediate_size", "rope_theta", "rms_norm_eps", "embedding_std", "init_std"),
)

# Setting → the numbers or the words that it may be.
SETTINGS: dict[str, Range | tuple[str, ...]] = {
    "seed": Range(0, 2**32 - 1),
    "iterations": Range(0, 1000),
    "improve_by": IMPROVE_BY,
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "attention", "dots"),
    "model.attention": ("auto", "chunks", "kernel", "cudnn"),
    "model.vocab_size": Range(0, int(NUMBERS["vocab_size"][1])),
    **{f"model.{name}": Range(*NUMBERS[name]) for name in _SHAPE},
    "prompts.chat": ("none", "template"),
    "data.world": WORLDS,
    "data.operations": Range(1, 9),
    "data.guessed_share": _SHARE,
    "data.unseen_blocks": Range(0, 24),
    "data.taught_results": Range(1, 10),
    "data.unseen_results": Range(0, 9),
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
    "mcts.questions": SOME,
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
    "train.log_every": SOME,
    "train.on_nonfinite": ("stop", "skip"),
    "train.optimizer_dtype": ("float32", "bfloat16"),
    "lora.rank": Range(0, 65_536),
    "lora.alpha": Range(0, 1_000_000, above=True),
    "sft.verdict_weight": Range(0, 1000, above=True),
    "search.width": Range(2, 1000),
    "search.temperature": _WARMTH,
    "search.top_p": _NUCLEUS,
    "search.redraw": Range(0, 0.5),
    "search.max_expansions": Range(1, 1_000_000),
    "search.on_tie": ("back", "append"),
    "search.on_reject": ("append", "resample"),
    "search.propose_by": ("self",),  # or a function, see `OWN`
    "search.max_step_tokens": _LENGTH,
    "search.context_tokens": _LENGTH,
    "search.slots": Range(1, 1_000_000),
    "search.tensor": Range(0, 4096),
    "search.weights": ("full", "int8"),
    "judge.kind": KINDS,
    "judge.mode": ("generate", "logprob"),
    "judge.by": ("self", "random", "oracle", "prm", "http"),  # or see `OWN`
    "judge.keep": Range(0, 1000),
    "judge.learn": ("none", "consistency", "outcome"),
    "judge.model": ("", "M1"),
    "judge.score": ("sum", "consistent", "single", "pointwise"),
    "judge.value": ("hard", "probability"),
    "judge.votes": Range(1, 1000),
    "judge.schedule": ("full", "knockout", "swiss"),
    "judge.temperature": _WARMTH,
    "judge.top_p": _NUCLEUS,
    "judge.max_tokens": _LENGTH,
    "judge.context_tokens": _LENGTH,
    "judge.rows": Range(1, 1_000_000),
    "srlm.max_tokens": _LENGTH,
    "pairs.min_margin": Range(0, 1_000_000),
    "dpo.beta": Range(0, 1000, above=True),
    "dpo.label_smoothing": Range(0, 0.5, below=True),
    "dpo.nll_weight": Range(0, 1000),
    "dpo.reference": ("precomputed", "live"),
    "dpo.batch_size": Range(1, 1_000_000),
    "dpo.epochs": Range(1, 10_000),
    "eval.max_tokens": _LENGTH,
    "eval.search_count": _COUNT,
    "eval.grading": ("lenient", "strict"),
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
    found = [rule for rule in (*_ranges(config), *_phases(config)) if not rule[-1]]
    refused = {name for name, *_ in found}  # whatever the other settings are
    for rule in (*rules.between(config), *judge_rules.between(config)):
        if not rule[-1] and refused.isdisjoint(rule[0].split(", ")):
            found.append(rule)
    sentences = (
        f"{name}={_shown(value)}; expected {expected}."
        for name, value, expected, _ in found
    )
    return list(dict.fromkeys(sentences))


def _shown(value: Any) -> str:
    """Returns a value as Python writes it, cut to a length for messages."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text):,} characters)"


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


def _ranges(config: Any) -> Iterator[rules.Rule]:
    """Yields the rules of the table; a word that nearly fits is suggested."""
    for name, allowed in SETTINGS.items():
        value = _value(config, name)
        yield _rule(name, value, allowed)


def _rule(name: str, value: Any, allowed: Range | tuple[str, ...]) -> rules.Rule:
    expected = _expected(name, allowed)
    if name in OWN and rules.is_own(value):
        return name, value, expected, True
    if not isinstance(allowed, Range):
        expected += did_you_mean(str(value), allowed)
    elif value not in allowed:
        expected += rules.remark(value)
    return name, value, expected, value in allowed


def _phases(config: Any) -> Iterator[rules.Rule]:
    for place, phase in rules.every_phase(config):
        if place.startswith("sft."):  # the others are in the table
            for name, allowed in _PHASE.items():
                yield _rule(f"{place}.{name}", _value(phase, name), allowed)
