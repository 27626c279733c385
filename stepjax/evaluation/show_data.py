"""``stepjax show --data``: rows of training as tokens with the mask of the loss."""

import itertools
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from stepjax import forest, records, sft
from stepjax.codec import Codec
from stepjax.evaluation import show
from stepjax.lm import tokenizer
from stepjax.pairs import Pair
from stepjax.run import kind, world_rows
from stepjax.settings import Settings, templates

SOURCES = ("ift", "eft", "pairs")
_MOST = 24  # tokens of a part of a row that are shown at its start and at its end


def show_data(
    workdir: pathlib.Path,
    settings: Settings,
    *,
    source: str,
    number: int | None = None,
    problem: str = "",
    choose_randomly: bool = False,
    count: int = 3,
) -> str:
    """Returns rows of training as text: ids and texts of their tokens, and the mask.

    Args:
      workdir: the run directory, whose data are prepared.
      settings: of the run.
      source: one of `SOURCES`: rows of IFT, of EFT, or preferences of a model.
      number: of the model whose preferences are shown; None is the newest that has any.
      problem: id of the row, or of the problem that preferences are about; "" shows
        the first ones.
      choose_randomly: whether others are shown each time.
      count: how many rows, at most.

    Raises:
      ValueError: for an unknown source, data that are not there, or an id without rows.
    """
    if source not in SOURCES:
        raise ValueError(f"--data={source}; expected one of {', '.join(SOURCES)}.")
    if number is None:
        made = [p.parent.name[1:] for p in workdir.glob("M*/pairs.jsonl")]
        number = max((int(name) for name in made if name.isdecimal()), default=1)
    folder = workdir / (f"M{number}" if source == "pairs" else "data")
    path = folder / f"{source}.jsonl"
    if not path.exists():
        raise ValueError(
            f"{path} is not there; expected a run that has made it. {_REMEDIES[source]}"
        )
    judgments = kind.choose(settings, workdir / "data").judgments
    record = {"ift": records.Solution, "eft": judgments.record, "pairs": Pair}[source]
    rows = records.read_jsonl(path, record)
    if not rows:
        raise ValueError(f"{path} has no rows; expected at least one. {_EMPTY[source]}")
    chosen = [row for row in rows if problem in ("", row.id, _problem_id(row))]
    if not chosen:
        raise ValueError(
            f"--problem={problem}: {path} has no row of this id among {len(rows)}; "
            f"expected the id of one of its rows, such as {rows[0].id!r}."
        )
    if choose_randomly:
        random.shuffle(chosen)
    texts = world_rows.templates(settings.data.world)
    texts = templates(settings.texts, texts, tie=settings.judge.tie)
    codec = Codec(tokenizer.load(workdir / "tokenizer"), texts)
    text_of = {"ift": _solution, "eft": _judgment, "pairs": _pair}[source]
    shown = chosen[:count]
    lines = [f"{len(shown)} of {len(chosen)} rows, from {path}", ""]
    for row in shown:
        lines += [*text_of(codec, row, settings, judgments), ""]
    return "\n".join(lines)


_REMEDIES = {
    "ift": "Run `stepjax run` on the same --workdir first.",
    "eft": "With data.make_eft the rows are made before M1: run `stepjax sft` first.",
    "pairs": "Name another --model: one that has searched its questions has them.",
}
_EMPTY = {
    "ift": "Phases of SFT that take nothing of IFT need none.",
    "eft": "A judge that is not the model itself needs none.",
    "pairs": "No step of this model's search had a preference; name another --model.",
}


def _problem_id(row: Any) -> str:
    return getattr(row, "problem_id", row.id)


def _solution(codec: Codec, row, settings: Settings, judgments) -> Iterator[str]:
    tree = sft.solution_tree(codec, row)
    yield _head(row.id, len(tree.tokens), settings)
    yield from of_tree(codec, tree)


def _judgment(codec: Codec, row, settings: Settings, judgments) -> Iterator[str]:
    weight, words = settings.sft.verdict_weight, settings.sft.verdict_words
    tree = sft.judgment_tree(codec, judgments.example(codec, row), weight, words)
    yield _head(row.id, len(tree.tokens), settings)
    yield from of_tree(codec, tree)


def _pair(codec: Codec, row: Pair, settings: Settings, judgments) -> Iterator[str]:
    parts = {
        "context": row.context_ids,
        "chosen": row.chosen_ids,
        "rejected": row.rejected_ids,
    }
    yield _head(row.id, sum(map(len, parts.values())), settings)
    for name, ids in parts.items():
        loss = "not in the loss" if name == "context" else "their sum is in the loss"
        yield from _part(codec, f"{name}: {_tokens(len(ids))}, {loss}:", ids)


def _head(name: str, size: int, settings: Settings) -> str:
    most = settings.train.row_length
    over = f"; LEFT OUT, longer than train.row_length={most}" if size > most else ""
    return f"{name}: {size} tokens{over}"


def of_tree(codec: Codec, tree: forest.Tree) -> Iterator[str]:
    """Yields the tokens of a tree in parts of equal weight, id and text of each."""
    weights = np.zeros(len(tree.tokens))
    weights[tree.scored] = tree.weight
    pairs = zip(weights.tolist(), tree.tokens.tolist(), strict=True)
    for weight, part in itertools.groupby(pairs, key=lambda pair: pair[0]):
        ids = [token for _, token in part]
        loss = f"weight {weight:g} in the loss" if weight else "not in the loss"
        yield from _part(codec, f"{_tokens(len(ids))}, {loss}:", ids)


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _part(codec: Codec, head: str, ids: Sequence[int]) -> Iterator[str]:
    names: Callable[[int], bytes] = codec.tokenizer.token_bytes.__getitem__
    texts = [f"{i}:{names(i).decode(errors='backslashreplace')!r}" for i in ids]
    if len(texts) > 2 * _MOST:
        left = len(texts) - 2 * _MOST
        texts = [*texts[:_MOST], f"[{left} more]", *texts[-_MOST:]]
    yield f"  {head}"
    yield from show.wrapped(" ".join(texts), "    ")
