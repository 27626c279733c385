"""What a run takes from its built-in world: templates, tokenizer, rows, questions."""

from collections.abc import Collection, Sequence
from typing import Any

from stepjax import records
from stepjax.prompts import Templates
from stepjax.run.kind import Kind
from stepjax.settings import Settings
from stepjax.worlds import (
    arithmetic,
    arithmetic_data,
    backwards,
    backwards_data,
    word_problems,
    word_problems_data,
    word_problems_srlm,
)
from stepjax.worlds import word_problems_judgments as judgments

# World → writes its tokenizer into a folder; word problems take that of a model.
TOKENIZERS = {
    "arithmetic": arithmetic.train_tokenizer,
    "backwards": arithmetic.train_tokenizer,
}
_TEMPLATES = {
    "": Templates,
    "arithmetic": arithmetic.templates,
    "backwards": backwards.templates,
    "word_problems": word_problems.templates,
}


def templates(world: str) -> Templates:
    """Returns the templates of a world, or those of `stepjax.prompts` for ""."""
    return _TEMPLATES[world]()


def splits(settings: Settings, kind: Kind, wanted: Sequence[int]) -> dict[str, Any]:
    """Makes the rows of a world that needs no file.

    Args:
      settings: of the run.
      kind: what its judge is asked.
      wanted: number of questions of each iteration.

    Returns:
      Name of a file → its rows; "questions" → a list of rows for each iteration.

    Raises:
      ValueError: for counts that the world has not enough problems for.
    """
    data = settings.data
    shared = {
        "seed": settings.seed,
        "ift": data.ift_count,
        "eft": 0 if data.make_eft else data.eft_count,
        "heldout": data.heldout_count,
        "questions": wanted,
        "test": data.test_count,
        "operations": data.operations,
        "judgments": kind.world_rows,
    }
    make = _backwards if data.world == "backwards" else _arithmetic
    return make(settings, shared)


def _backwards(settings: Settings, shared: dict[str, Any]) -> dict[str, Any]:
    taught, unseen = settings.data.taught_results, settings.data.unseen_results
    made = backwards_data.dataset(**shared, taught=taught, unseen=unseen)._asdict()
    levels = made.pop("levels")
    if not made["unseen"]:
        del made["unseen"]
    return made | {f"level_{level}": rows for level, rows in enumerate(levels)}


def _arithmetic(settings: Settings, shared: dict[str, Any]) -> dict[str, Any]:
    data = settings.data
    made = arithmetic_data.dataset(
        **shared,
        guessed_share=data.guessed_share,
        unseen_blocks=data.unseen_blocks,
        **_initial_counts(settings) if data.make_eft else {},
    )._asdict()
    absent = [] if made["unseen"] else ["unseen"]
    if data.make_eft:
        absent.append("eft")  # is made later
    if not data.make_eft or not settings.prm.reads_labels:
        absent += ["labels", "labels_heldout"]
    if not data.make_eft:
        absent.append("tree_questions")
    return {name: rows for name, rows in made.items() if name not in absent}


def word_problem_splits(
    settings: Settings,
    kind: Kind,
    texts: Templates,
    wanted: Sequence[int],
    test: list[records.Problem],
) -> dict[str, Any]:
    """Splits the problems of `data.equations`; the test has a file of its own.

    Args:
      settings: of the run.
      kind: what its judge is asked.
      texts: its templates.
      wanted: number of questions of each iteration.
      test: the benchmark problems.

    Returns:
      Name of a file → its rows; "questions" → a list of rows for each iteration.

    Raises:
      ValueError: for a file that is missing or malformed, or too few problems.
    """
    data, rated = settings.data, kind.name == "ratings"
    judged = word_problems_srlm.ratings if rated else judgments.comparisons
    made = word_problems_data.dataset(
        word_problems_data.read_equations(data.equations),
        test,
        seed=settings.seed,
        ift=data.ift_count,
        eft=0 if data.make_eft else data.eft_count,
        heldout=data.heldout_count,
        questions=wanted,
        tree_questions=settings.mcts.questions if data.make_eft else 0,
        ift_variants=data.ift_variants,
        drills=data.drills,
        templates=texts,
        style=data.explanations,
        judged=judged,
    )._asdict()
    del made["eft" if data.make_eft else "tree_questions"]
    return made | {"test": test}


def _initial_counts(settings: Settings) -> dict[str, int]:
    """Returns how many rows a run needs that makes its EFT rows."""
    counts = {"tree_questions": settings.mcts.questions}
    if settings.prm.reads_labels:
        counts["labels"] = settings.prm.labels_count
        counts["labels_heldout"] = settings.prm.heldout_count
    return counts


def further(
    settings: Settings, seen: Collection[str], wanted: dict[str, int]
) -> list[records.Question]:
    """Draws questions of further iterations in a world that needs no file.

    Args:
      settings: of the run.
      seen: texts of all problems that the run has.
      wanted: "questions_N" → how many.

    Raises:
      ValueError: when there are too few problems left.
    """
    data, total = settings.data, sum(wanted.values())
    shape = {"seed": settings.seed, "operations": data.operations}
    if data.world == "backwards":
        shape |= {"taught": data.taught_results, "unseen": data.unseen_results}
        drawn = iter(backwards_data.further(total, seen=seen, **shape))
        name = "backwards"
    else:
        split = arithmetic.split(
            settings.seed,
            guessed_share=data.guessed_share,
            unseen_blocks=data.unseen_blocks,
        )
        shape |= {"blocks": split.judged, "exclude": seen}
        drawn, name = iter(arithmetic.problems(total, **shape)), "arith"
    return [
        records.Question(f"{name}-q{file.rpartition('_')[2]}-{n}", next(drawn))
        for file, count in wanted.items()
        for n in range(count)
    ]
