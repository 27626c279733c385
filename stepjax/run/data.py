"""The first stage of a run: its data, its tokenizer, and every check made early.

Writes ``DIR/data/{ift,eft,heldout,questions_1..n,test}.jsonl`` and ``DIR/tokenizer``.
Question files hold no answers. Everything that can be known to be wrong is refused
here, before anything is compiled.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence

import ml_collections

from stepjax import prompts, records
from stepjax.initial_data import sources
from stepjax.lm import hf_config, tokenizer
from stepjax.lm import model as lm
from stepjax.prompts import Templates
from stepjax.run import checks
from stepjax.worlds import arithmetic, arithmetic_data

_FORMATS = {
    "ift": ("jsonl", "gsm8k"),
    "eft": ("jsonl", "prm800k"),
    "question": ("jsonl", "gsm8k"),
    "test": ("jsonl", "gsm8k"),
}


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
    checks.check_disjoint(files)
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
