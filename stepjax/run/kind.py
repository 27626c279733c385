"""The one choice between the paper's method and the SRLM baseline: `judge.kind`.

"comparisons" is the paper: the model compares next steps in pairs. "ratings" is
arXiv 2401.10020: it rates whole solutions one by one, see `stepjax.srlm`. Other files
ask `choose`, or take what differs between the two as arguments.
"""

from collections.abc import Callable
from typing import NamedTuple

from stepjax import records, srlm
from stepjax.controls import IsRight
from stepjax.initial_data.formats import sources, tfds
from stepjax.judge import Judgments, comparisons
from stepjax.prompts import Templates
from stepjax.propose import STEP, Unit
from stepjax.settings import KINDS, Settings
from stepjax.worlds import arithmetic, arithmetic_data, arithmetic_srlm


class Kind(NamedTuple):
    """What differs between comparisons and ratings.

    Attributes:
      name: value of `judge.kind`.
      unit: what a candidate is.
      judgments: what the judge is asked about it.
      candidate_tokens: most tokens of a candidate.
      judgment_tokens: most tokens of a judgment.
      readers: format of a file of EFT rows → its reader.
      world_rows: makes the rows of one problem to judge in the arithmetic world, see
        `arithmetic_data.dataset`.
      is_right: whether a candidate is right, or None where the data cannot tell. Gold
        knowledge, for evaluation and for the oracle judge only.
    """

    name: str
    unit: Unit
    judgments: Judgments
    candidate_tokens: int
    judgment_tokens: int
    readers: dict[str, sources.Reader]
    world_rows: Callable[..., list]
    is_right: IsRight | None


def choose(settings: Settings) -> Kind:
    """Returns the kind that `judge.kind` names.

    Raises:
      ValueError: for an unknown kind or reading, or for templates of ratings that
        cannot be used.
    """
    in_world = settings.data.world == "arithmetic"
    if settings.judge.kind == "ratings":
        base = arithmetic_srlm.TEXTS if in_world else srlm.Texts()
        rate, rating = settings.srlm.rate, settings.srlm.rating
        texts = srlm.Texts(rate or base.rate, rating or base.rating)
        return Kind(
            name="ratings",
            unit=srlm.SOLUTION,
            judgments=srlm.ratings(texts),
            candidate_tokens=settings.eval.max_tokens,
            judgment_tokens=settings.srlm.max_tokens,
            readers={"jsonl": rows_of(srlm.Rating)},
            world_rows=arithmetic_srlm.ratings,
            is_right=arithmetic_srlm.is_right if in_world else None,
        )
    if settings.judge.kind == "comparisons":
        return Kind(
            name="comparisons",
            unit=STEP,
            judgments=comparisons(settings.judge.score),
            candidate_tokens=settings.search.max_step_tokens,
            judgment_tokens=settings.judge.max_tokens,
            readers=sources.readers("comparison"),
            world_rows=arithmetic_data.comparisons,
            is_right=arithmetic.is_right if in_world else None,
        )
    raise ValueError(f"judge.kind={settings.judge.kind!r}; expected one of {KINDS}.")


def rows_of(record_type: type) -> sources.Reader:
    """Returns the reader of files in our own format, one record per line.

    It also reads rows of tensorflow-datasets; see `initial_data.formats.tfds`.
    """

    def read(path: str, texts: Templates) -> list:
        del texts
        if tfds.is_address(path):
            return tfds.read(path, record_type)
        return records.read_jsonl(path, record_type)

    return read
