"""Checks of a run's settings, mesh and budgets, made before anything is compiled."""

import operator

from stepjax import prompts, srlm
from stepjax.codec import Codec
from stepjax.controls import JUDGES
from stepjax.initial_data import prm, teacher
from stepjax.judge import SCORES
from stepjax.lm import hf_config, hosts, sharding, tokenizer, train
from stepjax.lm import model as lm
from stepjax.run.kind import choose
from stepjax.search import ON_TIE
from stepjax.self_judge import MODES
from stepjax.settings import (
    BACKENDS,
    IMPROVE_BY,
    KINDS,
    RULES,
    WORLDS,
    Search,
    Settings,
)
from stepjax.tournament import SCHEDULES
from stepjax.worlds.word_problems_judgments import EXPLANATIONS

_CHOICES = {
    "data.world": WORLDS,
    "improve_by": IMPROVE_BY,
    "search.on_tie": ON_TIE,
    "judge.kind": KINDS,
    "judge.by": JUDGES,
    "judge.mode": MODES,
    "judge.score": SCORES,
    "judge.schedule": tuple(SCHEDULES),
    "mcts.rule": RULES,
    "teacher.backend": BACKENDS,
    "data.explanations": EXPLANATIONS,
}
_LEAST = {
    "seed": 0,
    "iterations": 0,
    "data.ift_count": 0,
    "data.ift_variants": 0,
    "data.drills": 0,
    "data.eft_count": 0,
    "data.heldout_count": 0,
    "data.test_count": 0,
    "data.corrupted_count": 0,
    "train.checkpoint_every": 0,
    "train.row_length": 1,
    "train.micro_batches": 1,
    "train.log_every": 1,
    "search.width": 2,
    "search.temperature": 0,
    "search.max_expansions": 1,
    "search.max_step_tokens": 1,
    "search.slots": 1,
    "judge.temperature": 0,
    "judge.rows": 1,
    "srlm.max_tokens": 1,
    "pairs.min_margin": 1,
    "dpo.batch_size": 1,
    "dpo.epochs": 1,
    "eval.max_tokens": 1,
    "eval.search_count": 0,
    "prm.labels_count": 0,
    "prm.heldout_count": 0,
    "rollouts.problems": 0,
    "rollouts.solutions": 1,
    "rollouts.samples": 1,
    "rollouts.temperature": 0,
    "rollouts.max_tokens": 1,
    "mcts.questions": 1,
    "mcts.width": 2,
    "mcts.temperature": 0,
    "mcts.iterations": 1,
    "mcts.depth": 0,
    "mcts.max_steps": 1,
    "mcts.exploration": 0,
    "mcts.min_margin": 0,
    "mcts.pairs_per_layer": 1,
    "mcts.pairs_per_node": 1,
    "mcts.undecided_share": 0,
    "mcts.remember_tokens": 0,
    **{f"teacher.{name}": least for name, least in teacher.LEAST.items()},
}


def check_settings(settings: Settings) -> None:
    """Raises ValueError for an unknown choice, or a number out of its range."""

    def value_of(name: str):
        return operator.attrgetter(name)(settings)

    rules = [
        (name, value_of(name), f"one of {known}", value_of(name) in known)
        for name, known in _CHOICES.items()
    ]
    rules += [
        (name, value_of(name), f"at least {least}", value_of(name) >= least)
        for name, least in _LEAST.items()
    ]
    rules += [
        (name, value_of(name), "above 0 and at most 1", 0 < value_of(name) <= 1)
        for name in ("search.top_p", "judge.top_p", "rollouts.top_p", "mcts.top_p")
    ]
    beta, smoothing = settings.dpo.loss.beta, settings.dpo.loss.label_smoothing
    rules += [
        ("seed", settings.seed, "below 2**32", settings.seed < 2**32),
        ("dpo.beta", beta, "above 0", beta > 0),
        ("dpo.label_smoothing", smoothing, "0 to below 0.5", 0 <= smoothing < 0.5),
    ]
    names = [phase.name for phase in settings.sft.phases]
    different = "at least one phase, and every name once"
    rules += [
        ("names of sft.phases", names, different, 0 < len(set(names)) == len(names))
    ]
    phases = (*settings.sft.phases, settings.prm.phase, settings.mcts.phase)
    for phase in phases:
        name, size = f"batch_size of sft phase {phase.name!r}", phase.batch_size
        rules.append((name, size, "at least 1", size > 0))
    rules += _rules_of_controls(settings)
    if settings.data.make_eft:
        rules += _rules_of_initial_data(settings)
    for name, value, expected, good in rules:
        if not good:
            raise ValueError(f"{name}={value!r}; expected {expected}.")
    for options in (*(phase.optimizer for phase in phases), settings.dpo.optimizer):
        train.make_optimizer(options, 1)


def _rules_of_controls(settings: Settings) -> list[tuple]:
    """Returns the rules that hold between settings, mostly for control experiments.

    Each is (name, value, what is expected, whether it holds).
    """
    judge, updates = settings.judge, settings.dpo.updates
    numbers = all(type(count) is int and count > 0 for count in updates)
    enough = numbers and len(updates) >= settings.iterations
    rules = [
        (
            "dpo.updates",
            updates,
            f"one number above 0 for each of {settings.iterations} iterations, or ()",
            enough or (not updates and settings.improve_by == "dpo"),
        ),
        (
            "judge.by",
            judge.by,
            "'self', or 'random', or 'oracle' in a world (data.world)",
            judge.by != "oracle" or settings.data.world != "",
        ),
    ]
    rules.append(
        (
            "sft.from_policy",
            settings.sft.from_policy,
            "False without data.make_eft, which makes the policy",
            settings.data.make_eft or not settings.sft.from_policy,
        )
    )
    rules.append(
        (
            "judge.kind",
            judge.kind,
            "'comparisons' with data.world='word_problems', which makes no ratings",
            judge.kind == "comparisons" or settings.data.world != "word_problems",
        )
    )
    if judge.kind == "ratings":
        rules += srlm.rules(
            by=judge.by,
            mode=judge.mode,
            schedule=judge.schedule,
            best_beats_all=settings.pairs.best_beats_all,
        )
    return rules


def _rules_of_initial_data(settings: Settings) -> list[tuple]:
    """Returns the rules of a run that makes its EFT rows, as above."""
    world, judge = settings.data.world, settings.judge
    policy, reward = settings.mcts.phase, settings.prm.phase
    backend, model = settings.teacher.backend, settings.teacher.model
    return [
        (
            "judge.kind",
            judge.kind,
            "'comparisons' with data.make_eft, because the teacher compares steps",
            judge.kind == "comparisons",
        ),
        (
            "teacher.backend",
            backend,
            "'http', 'local' or 'replay', because only a world (data.world) teaches",
            backend != "world" or world != "",
        ),
        (
            "prm.labels",
            settings.prm.labels,
            "a file or 'rollouts', because only a world (data.world) knows the gold",
            settings.prm.learns or world != "",
        ),
        (
            "data.corrupted_count",
            settings.data.corrupted_count,
            "0, because only a world (data.world) corrupts steps",
            not settings.data.corrupted_count or world != "",
        ),
        (
            "mcts.undecided_share",
            settings.mcts.undecided_share,
            "below 1, and 0 unless teacher.undecided_margin is above 0",
            not settings.mcts.undecided_share
            or settings.mcts.undecided_share < 1
            and settings.teacher.undecided_margin > 0,
        ),
        (
            "teacher.model",
            model,
            "'' for M0, or 'hf:DIR', with teacher.backend='local'",
            backend != "local" or not model or model.startswith("hf:"),
        ),
        (
            "prm.language_weight",
            settings.prm.language_weight,
            "at least 0",
            settings.prm.language_weight >= 0,
        ),
        (
            "shares of mcts.phase",
            (policy.ift, policy.eft),
            "ift above 0 and eft 0, because the policy learns from IFT rows alone",
            policy.ift > 0 and not policy.eft,
        ),
        (
            "shares of prm.phase",
            (reward.ift, reward.eft),
            "ift 0 and eft above 0, because step labels take the place of EFT rows",
            reward.eft > 0 and not reward.ift,
        ),
    ]


def check_initial_data(
    settings: Settings, codec: Codec, files: dict[str, list]
) -> None:
    """Raises ValueError for what would stop a run while it makes its EFT rows.

    Args:
      settings: of the run, which has `data.make_eft`.
      codec: tokenizer and templates.
      files: name → rows: "ift", "tree_questions", and "labels" unless rollouts make
        the labels.
    """
    options = settings.prm
    if settings.teacher.backend != "world":
        # It is not asked here; that needs a file for its answers, and a local model.
        teacher.make_teacher(settings.teacher, "answers.jsonl", generate=lambda p: ())
    if settings.teacher.backend == "local" and settings.teacher.model:
        folder = settings.teacher.model.removeprefix("hf:")
        hf_config.config_from_hf(folder)
        Codec(tokenizer.load(folder), codec.templates)
    if options.prompt:  # `check_budgets` has checked that of the solver
        prompts.check_prompt("prm.prompt", options.prompt)
        for row in files["tree_questions"]:
            empty = prm.context(codec, prm.Solving(row.problem, ()), options.prompt)
            row_name = f"tree_questions row {row.id!r}: the PRM's prompt"
            _check_room_for_a_step(row_name, len(empty), settings.search)
    if not options.learns:
        return
    prm.label_ids(codec)
    if options.labels == "rollouts":
        problems = len(files["ift"][: settings.rollouts.problems or None])
        if problems <= options.heldout_count:
            raise ValueError(
                f"prm.heldout_count={options.heldout_count} with {problems} problems "
                "whose steps rollouts label; expected less. Lower it, or raise "
                "rollouts.problems."
            )
        return
    if not files["labels"]:
        raise ValueError(
            f"prm.labels_count={options.labels_count} makes no step labels in the "
            "arithmetic world; expected a number above 0 (or prm.labels='rollouts')."
        )
    length = settings.train.row_length
    sizes = (
        len(prm.tree(codec, row, options.prompt).tokens) for row in files["labels"]
    )
    if all(size > length for size in sizes):  # ends at the first row that fits
        raise ValueError(
            f"all {len(files['labels'])} rows of labelled steps have more than "
            f"train.row_length={length} tokens; expected some that fit. Raise "
            "train.row_length."
        )


def check_mesh(slots: int, *models: lm.Decoder) -> None:
    """Raises ValueError when slots or parameters do not divide over the devices.

    Args:
      slots: problems in flight, over all hosts (`search.slots`).
      *models: the decoder on the mesh of training, and on a host's mesh.
    """
    for model in models:
        sharding.param_shardings(model.mesh, lm.abstract_params(model))
    multiple = sharding.row_multiple(models[-1].mesh) * hosts.count()
    if slots % multiple:
        raise ValueError(
            f"search.slots={slots}; expected a multiple of the "
            f"{multiple} data-parallel devices."
        )


def check_disjoint(files: dict[str, list]) -> None:
    """Raises ValueError when the text of a problem is in two splits.

    IFT, EFT and what EFT is made from may share problems: all are training data of M1.

    Args:
      files: split → its rows, each with a `problem`.
    """
    groups: dict[str, list[str]] = {}
    for name, rows in files.items():
        group = "M1 training" if name in _TRAINING else name
        groups.setdefault(group, []).extend(row.problem for row in rows)
    owner: dict[str, str] = {}
    for group, texts in groups.items():
        for text in set(texts):
            if text in owner:
                raise ValueError(
                    f"problem {text[:60]!r} is in {owner[text]} and in {group}; "
                    "expected every problem in one split. Remove it from one."
                )
            owner[text] = group


# Splits whose problems M1 learns from, or what its EFT rows are made of.
_TRAINING = ("ift", "eft", "labels", "tree_questions")


def check_budgets(settings: Settings, codec: Codec, files: dict[str, list]) -> None:
    """Raises ValueError when a prompt does not fit its sequence budget.

    Args:
      settings: of the run.
      codec: tokenizer and templates.
      files: name → rows with a `problem`: questions and test problems.
    """
    judge = settings.judge
    context = choose(settings).judgments.context
    for name, rows in files.items():
        for row in rows:
            tokens = len(codec.solve_prompt(row.problem))
            row_name = f"{name} row {row.id!r}: its prompt"
            _check_room_for_a_step(row_name, tokens, settings.search)
            need = len(context(codec, row.problem, ()))
            if need > judge.context_tokens:
                raise ValueError(
                    f"{name} row {row.id!r}: the judge's prompt has {need} tokens; "
                    f"expected at most judge.context_tokens={judge.context_tokens}. "
                    "Raise it or drop the problem."
                )
    response = max(len(codec.verdict(side)) for side in "AB")
    if judge.mode == "generate" and judge.max_tokens < response:
        raise ValueError(
            f"judge.max_tokens={judge.max_tokens}; expected at least the {response} "
            "tokens of a verdict."
        )


def _check_room_for_a_step(prompt: str, tokens: int, search: Search) -> None:
    """Raises ValueError unless a prompt leaves room for a step in its context.

    Args:
      prompt: which one, for the message.
      tokens: of the prompt.
      search: budgets of a step and of a context.
    """
    need = tokens + search.max_step_tokens
    if need > search.context_tokens:
        raise ValueError(
            f"{prompt} and one step of search.max_step_tokens={search.max_step_tokens} "
            f"need {need} tokens; expected at most search.context_tokens="
            f"{search.context_tokens}. Raise it or drop the problem."
        )
