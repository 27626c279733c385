"""The one choice between the paper's method and the SRLM baseline: `judge.kind`.

"comparisons" is the paper: the model compares next steps in pairs. "ratings" is
arXiv 2401.10020: it rates whole solutions one by one, see `stepjax.srlm`. Other files
ask `choose`, or take what differs between the two as arguments.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stepjax import pointwise, records, srlm
from stepjax.controls import IsRight
from stepjax.initial_data import eft
from stepjax.initial_data.formats import meaning, sources, tfds
from stepjax.judge import Judgments, comparisons
from stepjax.prompts import Templates
from stepjax.propose import STEP, Unit
from stepjax.run.ranges import KINDS
from stepjax.settings import Settings
from stepjax.worlds import (
    arithmetic,
    arithmetic_data,
    arithmetic_srlm,
    arithmetic_teacher,
    backwards,
    backwards_data,
    backwards_srlm,
    word_problems_data,
    word_problems_srlm,
)

# World → wordings of its ratings, and whether a whole solution is right; `Known` says
# that of word problems.
_RATED = {
    "arithmetic": (arithmetic_srlm.TEXTS, arithmetic_srlm.is_right),
    "backwards": (arithmetic_srlm.TEXTS, backwards_srlm.is_right),
    "word_problems": (word_problems_srlm.TEXTS, None),
}
_SHORT = ("arithmetic", "backwards")  # worlds whose prompts are a few characters


class Kind(NamedTuple):
    """What differs between comparisons and ratings.

    Attributes:
      name: value of `judge.kind`.
      unit: what a candidate is.
      judgments: what the judge is asked about it.
      candidate_tokens: most tokens of a candidate.
      judgment_tokens: most tokens of a judgment.
      readers: format of a file of EFT rows → its reader.
      world_rows: (id, problem, rng, share of undecided rows) → rows of a problem of the
        world to judge; None without a world, and for ratings of word problems.
      is_right: whether a candidate is right, or None where the data cannot tell. Gold
        knowledge, for making EFT rows, for evaluation and for the oracle judge only.
      mistake: (problem, steps, wrong candidate) → kind of its mistake; None where the
        data cannot tell. Gold knowledge.
      single: prompt of a judge that sees each step alone, "" for comparisons.
      teach: (pairs, templates) → the world's answers to the prompts of a teacher; None
        without a world.
    """

    name: str
    unit: Unit
    judgments: Judgments
    candidate_tokens: int
    judgment_tokens: int
    readers: dict[str, sources.Reader]
    world_rows: Callable[..., list] | None
    is_right: IsRight | None
    mistake: Callable[[str, Sequence[str], str], str | None] | None = None
    single: str = ""
    teach: Callable[..., list[dict[str, Any]]] | None = None


def choose(settings: Settings, data: pathlib.Path | None = None) -> Kind:
    """Returns the kind that `judge.kind` names.

    Args:
      settings: of the run.
      data: folder of the run's data, which holds the equations of word problems. They
        are read when they are needed; without the folder nothing knows them.

    Raises:
      ValueError: for an unknown kind or reading, or for templates of ratings that
        cannot be used.
    """
    world_name, known = settings.data.world, _known(settings, data)
    if settings.judge.kind == "ratings":
        base, is_right = _RATED.get(world_name, (srlm.Texts(), None))
        if known:
            is_right = known.solved
        rate, rating = settings.srlm.rate, settings.srlm.rating
        texts = srlm.Texts(rate or base.rate, rating or base.rating)
        return Kind(
            name="ratings",
            unit=srlm.SOLUTION,
            judgments=srlm.ratings(texts),
            candidate_tokens=settings.eval.max_tokens,
            judgment_tokens=settings.srlm.max_tokens,
            readers={"jsonl": rows_of(srlm.Rating)},
            world_rows=_rating_rows(settings),
            is_right=is_right,
        )
    if settings.judge.kind == "comparisons":
        world: dict[str, Any] = {"world_rows": None, "is_right": None}
        appraise = pointwise.stated
        if world_name == "backwards":
            appraise = backwards_data.appraise
            world["world_rows"] = _of_taught(settings, backwards_data.comparisons)
            world["is_right"] = backwards.is_right
        elif world_name == "arithmetic":
            appraise = arithmetic_data.appraise
            world["world_rows"] = arithmetic_data.comparisons
            world["is_right"] = arithmetic.is_right
            world["teach"] = arithmetic_teacher.answers
        elif known:
            world["world_rows"], world["is_right"] = known.comparisons, known.is_right
            world["mistake"], world["teach"] = known.mistake, known.answers
            appraise = known.appraise
        score, value = settings.judge.score, settings.judge.value
        if score == pointwise.SCORE:
            single = arithmetic.SINGLE if world_name in _SHORT else pointwise.SINGLE
            world["single"] = settings.texts.single or single
            if settings.data.make_eft:  # the gold does not correct its teacher
                appraise = pointwise.stated
            judgments = pointwise.appraisals(world["single"], value, appraise)
        else:
            judgments = comparisons(score, value, tie=settings.judge.tie)
        return Kind(
            name="comparisons",
            unit=STEP,
            judgments=judgments,
            candidate_tokens=settings.search.max_step_tokens,
            judgment_tokens=settings.judge.max_tokens,
            readers=_rated_readers() | sources.readers("comparison"),
            **world,
        )
    raise ValueError(f"judge.kind={settings.judge.kind!r}; expected one of {KINDS}.")


def _known(
    settings: Settings, data: pathlib.Path | None
) -> word_problems_data.Known | None:
    """Returns the equations of a run on word problems; None for any other run."""
    if settings.data.world != "word_problems" or data is None:
        return None
    options = settings.data
    path = data / "equations.jsonl"
    return word_problems_data.Known(path, options.explanations, settings.texts.step)


def _rating_rows(settings: Settings) -> Callable[..., list] | None:
    """Returns what makes ratings of a problem of the world."""
    if settings.data.world == "word_problems":
        return None  # `world_rows.word_problem_splits` makes all of them
    if settings.data.world == "backwards":
        return _of_taught(settings, backwards_srlm.ratings)
    return arithmetic_srlm.ratings


def _of_taught(settings: Settings, make: Callable[..., list]) -> Callable[..., list]:
    """Keeps the rows that a function makes to the tasks that the run teaches."""
    counts = settings.data.taught_results, settings.data.unseen_results
    parts = backwards.split(settings.seed, taught=counts[0], unseen=counts[1])
    return functools.partial(make, taught=parts.taught)


def _rated_readers() -> dict[str, sources.Reader]:
    """Returns the readers of pairs of steps; each becomes two rows, one per order."""

    def read(path: str, texts: Templates, *, strict: bool = False, reader) -> list:
        return eft.rated(reader(path, texts, strict=strict), "none")

    return {
        form: functools.partial(read, reader=reader)
        for form, reader in sources.readers("preference").items()
    }


def rows_of(record_type: type) -> sources.Reader:
    """Returns the reader of files in our own format, one record per line.

    It also reads rows of tensorflow-datasets; see `initial_data.formats.tfds`.
    """

    def parse(row: dict[str, Any], name: str, texts: Templates) -> list:
        del name, texts  # every row has an id, and steps with markers
        return [records.from_object(row, record_type)]

    def read(path: str, texts: Templates, *, strict: bool = False) -> list:
        del strict  # further fields are always errors
        if not tfds.is_address(path):
            return sources.read_with(path, parse, "jsonl", texts)
        rows = tfds.read(path, record_type)
        for row in rows:
            try:
                meaning.check(row, texts)
            except ValueError as error:
                raise ValueError(f"{path} (id {row.id[:60]}): {error}") from error
        return rows

    return read
