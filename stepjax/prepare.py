"""The first stage of a run: its data, its tokenizer, and every check made early.

Writes ``DIR/data/{ift,eft,heldout,questions_1..n,test}.jsonl`` and ``DIR/tokenizer``.
Question files hold no answers. Everything that can be known to be wrong is refused
here, before anything is compiled.
"""

import dataclasses
import operator
import pathlib
import tempfile
from collections.abc import Sequence

import ml_collections

from stepjax import prompts, records, sources
from stepjax.encode import Codec
from stepjax.judge import JUDGES, MODES, SCORES, shared_context
from stepjax.lm import hf_config, hosts, sharding, tokenizer, train
from stepjax.lm import model as lm
from stepjax.prompts import Templates
from stepjax.propose import UNITS
from stepjax.schedules import SCHEDULES
from stepjax.search import ON_TIE
from stepjax.worlds import arithmetic, arithmetic_data

WORLDS = ("", "arithmetic")
IMPROVE_BY = ("dpo", "sft")
_FORMATS = {
    "ift": ("jsonl", "gsm8k"),
    "eft": ("jsonl", "prm800k"),
    "question": ("jsonl", "gsm8k"),
    "test": ("jsonl", "gsm8k"),
}
_CHOICES = {
    "data.world": WORLDS,
    "improve_by": IMPROVE_BY,
    "search.unit": UNITS,
    "search.on_tie": ON_TIE,
    "judge.by": JUDGES,
    "judge.mode": MODES,
    "judge.score": SCORES,
    "judge.schedule": tuple(SCHEDULES),
}
_LEAST = {
    "seed": 0,
    "iterations": 0,
    "data.ift_count": 0,
    "data.eft_count": 0,
    "data.heldout_count": 0,
    "data.test_count": 0,
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
    "judge.rating_tokens": 1,
    "pairs.min_margin": 1,
    "dpo.batch_size": 1,
    "dpo.epochs": 1,
    "eval.max_tokens": 1,
    "eval.search_count": 0,
}


def check_settings(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a setting of an unknown name or out of its range."""

    def found(name: str):
        return operator.attrgetter(name)(config)

    rules = [
        (name, found(name), f"one of {known}", found(name) in known)
        for name, known in _CHOICES.items()
    ]
    rules += [
        (name, found(name), f"at least {least}", found(name) >= least)
        for name, least in _LEAST.items()
    ]
    rules += [
        (name, found(name), "above 0 and at most 1", 0 < found(name) <= 1)
        for name in ("search.top_p", "judge.top_p")
    ]
    beta, smoothing = config.dpo.beta, config.dpo.label_smoothing
    rules += [
        ("seed", config.seed, "below 2**32", config.seed < 2**32),
        ("dpo.beta", beta, "above 0", beta > 0),
        ("dpo.label_smoothing", smoothing, "0 to below 0.5", 0 <= smoothing < 0.5),
    ]
    names = [phase.name for phase in config.sft.phases]
    different = "at least one phase, and every name once"
    rules += [
        ("names of sft.phases", names, different, 0 < len(set(names)) == len(names))
    ]
    for phase in config.sft.phases:
        name, size = f"batch_size of sft phase {phase.name!r}", phase.batch_size
        rules.append((name, size, "at least 1", size > 0))
    rules += _rules_of_controls(config)
    for name, value, expected, good in rules:
        if not good:
            raise ValueError(f"{name}={value!r}; expected {expected}.")
    for options in (*(p.optimizer for p in config.sft.phases), config.dpo.optimizer):
        train.make_optimizer(train.OptimizerOptions(**options), 1)


def _rules_of_controls(config: ml_collections.ConfigDict) -> list[tuple]:
    """Returns (name, value, what is expected, whether it holds), across settings."""
    judge, updates = config.judge, config.dpo.updates
    numbers = all(type(count) is int and count > 0 for count in updates)
    enough = numbers and len(updates) >= config.iterations
    rated, whole = judge.score == "rating", config.search.unit == "solution"
    rules = [
        (
            "dpo.updates",
            updates,
            f"one number above 0 for each of {config.iterations} iterations, or ()",
            enough or (not updates and config.improve_by == "dpo"),
        ),
        (
            "judge.score",
            judge.score,
            "'rating' with search.unit='solution', and only then",
            rated == whole,
        ),
        (
            "judge.schedule",
            judge.schedule,
            "'full' with judge.score='rating'",
            judge.schedule == "full" or not rated,
        ),
        (
            "judge.by",
            judge.by,
            "'self', or 'random', or 'oracle' in the arithmetic world",
            judge.by != "oracle" or config.data.world == "arithmetic",
        ),
    ]
    if rated:
        rules += [
            ("judge.by", judge.by, "'self' with ratings", judge.by == "self"),
            ("judge.mode", judge.mode, "'generate'", judge.mode == "generate"),
            (
                "pairs.best_beats_all",
                config.pairs.best_beats_all,
                "False: ratings compare nothing",
                not config.pairs.best_beats_all,
            ),
        ]
    return rules


def check_mesh(config: ml_collections.ConfigDict, *models: lm.Decoder) -> None:
    """Raises ValueError when slots or parameters do not divide over the devices.

    Args:
      config: the run's settings.
      *models: the decoder on the mesh of training, and on a host's mesh.
    """
    for model in models:
        sharding.param_shardings(model.mesh, lm.abstract_params(model))
    multiple = sharding.row_multiple(models[-1].mesh) * hosts.count()
    if config.search.slots % multiple:
        raise ValueError(
            f"search.slots={config.search.slots}; expected a multiple of the "
            f"{multiple} data-parallel devices."
        )


def templates(config: ml_collections.ConfigDict) -> Templates:
    """Returns the prompt templates of a run, checked."""
    text = config.prompts
    base = arithmetic.templates() if config.data.world else Templates()
    result = Templates(
        solve=text.solve or base.solve,
        judge=text.judge or base.judge,
        step=text.step,
        verdict=text.verdict,
        rate=text.rate or base.rate,
        rating=text.rating or base.rating,
    )
    prompts.check_templates(result)
    return result


def make_data(
    config: ml_collections.ConfigDict, texts: Templates, directory: pathlib.Path
) -> dict[str, int]:
    """Writes the data files of a run.

    Args:
      config: the run's settings.
      texts: its templates.
      directory: where the files go.

    Returns:
      File name → rows.

    Raises:
      ValueError: for missing or malformed files, an unknown format, too few rows, or
        a problem that stands in two splits.
    """
    data = config.data
    wanted = data.questions[: config.iterations]
    numbers = all(type(count) is int and count > 0 for count in wanted)
    if len(wanted) < config.iterations or not numbers:
        raise ValueError(
            f"data.questions={tuple(data.questions)} for iterations="
            f"{config.iterations}; expected one number above 0 an iteration."
        )
    if data.world == "arithmetic":
        made = arithmetic_data.dataset(
            seed=config.seed,
            ift=data.ift_count,
            eft=data.eft_count,
            heldout=data.heldout_count,
            questions=wanted,
            test=data.test_count,
            operations=data.operations,
            guessed_share=data.guessed_share,
            unseen_blocks=data.unseen_blocks,
            rated=config.judge.score == "rating",
        )._asdict()
        if not made["unseen"]:
            del made["unseen"]
    else:
        made = _from_files(config, texts, wanted)
    questions = made.pop("questions")
    files = made | {f"questions_{n}": rows for n, rows in enumerate(questions, 1)}
    check_disjoint(files)
    for row in files["ift"]:
        try:
            prompts.check_steps(texts, row.steps)
        except ValueError as error:
            raise ValueError(f"IFT row {row.id!r}: {error}") from error
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        records.write_jsonl(directory / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in files.items()}


def _from_files(config, texts: Templates, wanted: Sequence[int]) -> dict[str, list]:
    data = config.data
    for name, known in _FORMATS.items():
        found = data[f"{name}_format"]
        if found not in known:
            raise ValueError(f"data.{name}_format={found!r}; expected one of {known}.")
    for name in ("ift", "eft", "question_file", "test"):
        if not data[name]:
            raise ValueError(
                f"data.{name} is empty; expected a file's path (or set data.world)."
            )
    if data.ift_format == "gsm8k":
        ift = sources.gsm8k_solutions(data.ift, texts)
    else:
        ift = records.read_jsonl(data.ift, records.Solution)
    ift = ift[: data.ift_count or None]
    if config.judge.score == "rating":
        if data.eft_format != "jsonl":
            raise ValueError(
                f"data.eft_format={data.eft_format!r} with judge.score='rating'; "
                "expected 'jsonl': rows of records.Rating."
            )
        eft = records.read_jsonl(data.eft, records.Rating)
    elif data.eft_format == "prm800k":
        eft = sources.prm800k_comparisons(data.eft, texts)
    else:
        eft = records.read_jsonl(data.eft, records.Comparison)
    names = list(dict.fromkeys(row.problem for row in eft))
    held = (
        set(names[len(names) - data.heldout_count :]) if data.heldout_count else set()
    )
    train = set([n for n in names if n not in held][: data.eft_count or None])
    if data.question_format == "gsm8k":
        pool = sources.gsm8k_questions(data.question_file)
    else:
        pool = records.read_jsonl(data.question_file, records.Question)
    if data.test_format == "gsm8k":
        test = sources.gsm8k_problems(data.test)
    else:
        test = records.read_jsonl(data.test, records.Problem)
    test = test[: data.test_count or None]
    seen = {row.problem for rows in (ift, eft, test) for row in rows}
    pool = [row for row in pool if row.problem not in seen]
    if len(pool) < sum(wanted):
        raise ValueError(
            f"{data.question_file} has {len(pool)} questions that are in no other "
            f"split; expected at least {sum(wanted)} for data.questions="
            f"{tuple(wanted)}. Lower data.questions or data.ift_count."
        )
    starts = [sum(wanted[:n]) for n in range(len(wanted))]
    return {
        "ift": ift,
        "eft": [row for row in eft if row.problem in train],
        "heldout": [row for row in eft if row.problem in held],
        "questions": [pool[s : s + n] for s, n in zip(starts, wanted, strict=True)],
        "test": test,
    }


def check_disjoint(files: dict[str, list]) -> None:
    """Raises ValueError when a problem's text stands in two splits.

    IFT and EFT may share problems (both are training data of M1).
    """
    groups = {("M1 training" if n in ("ift", "eft") else n): [] for n in files}
    for name, rows in files.items():
        group = "M1 training" if name in ("ift", "eft") else name
        groups[group] += [row.problem for row in rows]
    owner: dict[str, str] = {}
    for group, texts in groups.items():
        for text in set(texts):
            if text in owner:
                raise ValueError(
                    f"problem {text[:60]!r} is in {owner[text]} and in {group}; "
                    "expected every problem in one split. Remove it from one."
                )
            owner[text] = group


def make_tokenizer(
    config: ml_collections.ConfigDict, directory: pathlib.Path
) -> tokenizer.Tokenizer:
    """Writes the run's tokenizer into its directory and returns it.

    Raises:
      ValueError: when none is named, or its files cannot be read.
    """
    path = config.tokenizer
    if not path and config.model.init.startswith("hf:"):
        path = config.model.init.removeprefix("hf:")
    if path:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.load(tokenizer.fetch(path, folder)).save(directory)
    elif config.data.world == "arithmetic":
        arithmetic.train_tokenizer(directory)
    else:
        raise ValueError(
            "config.tokenizer is empty; expected a folder or a tokenizer.json file "
            "(or model.init=hf:DIR, or a data.world)."
        )
    return tokenizer.load(directory)


def model_config(config: ml_collections.ConfigDict, vocab_size: int) -> lm.ModelConfig:
    """Returns the decoder's configuration.

    Args:
      config: the run's settings.
      vocab_size: ids of the tokenizer.

    Raises:
      ValueError: when the tokenizer has more ids than the model has rows, or for an
        unknown model.init.
    """
    settings = config.model.to_dict()
    init = settings.pop("init")
    if init.startswith("hf:"):
        result = hf_config.config_from_hf(init.removeprefix("hf:"))
        numerics = {name: settings[name] for name in ("dtype", "remat", "attention")}
        result = dataclasses.replace(result, **numerics)
    elif init == "random":
        settings["vocab_size"] = settings["vocab_size"] or -(-vocab_size // 8) * 8
        result = lm.ModelConfig(**settings)
    else:
        raise ValueError(f"model.init={init!r}; expected 'random' or 'hf:DIR'.")
    if vocab_size > result.vocab_size:
        raise ValueError(
            f"the tokenizer has {vocab_size} ids and the model's vocabulary "
            f"{result.vocab_size}; expected at most as many. Use the model's own "
            "tokenizer, or raise model.vocab_size."
        )
    return result


def check_budgets(
    config: ml_collections.ConfigDict, codec: Codec, files: dict[str, list]
) -> None:
    """Raises ValueError when a prompt does not fit its sequence budget.

    Args:
      config: the run's settings.
      codec: tokenizer and templates.
      files: name → rows with a `problem`: questions and test problems.
    """
    search, judge = config.search, config.judge
    for name, rows in files.items():
        for row in rows:
            need = len(codec.solve_prompt(row.problem)) + search.max_step_tokens
            if need > search.context_tokens:
                raise ValueError(
                    f"{name} row {row.id!r}: its prompt and one step of "
                    f"search.max_step_tokens={search.max_step_tokens} need {need} "
                    f"tokens; expected at most search.context_tokens="
                    f"{search.context_tokens}. Raise it or drop the problem."
                )
            need = len(shared_context(codec, judge.score, row.problem, ()))
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
