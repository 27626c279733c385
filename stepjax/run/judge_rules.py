"""What the settings of the judge must be together, and with those that it works with.

The rules have the form of those in `stepjax.run.rules`; only the standard library is
needed.
"""

from collections.abc import Iterator
from typing import Any

from stepjax.run.rules import Rule, is_own

FOREIGN = ("prm", "http")  # values of judge.by; so is "module:function"


def is_foreign(by: str) -> bool:
    """Whether `judge.by` names a judge that is no model of the loop, nor a control.

    The model then need not learn to judge.
    """
    return by in FOREIGN or is_own(by)


# judge.learn → the least judge.votes that it needs, and why.
_VOTES = {
    "consistency": (3, "needs a majority and one explanation against it"),
    "outcome": (2, "compares explanations of the same call"),
}


def between(config: Any) -> Iterator[Rule]:
    """Yields the rules between settings that say who judges, how, and what counts.

    Args:
      config: all settings, see `stepjax.config.default`.
    """
    yield from _who(config)
    yield from _how(config)
    yield from _margin(config)
    if config.judge.score == "pointwise":
        yield from _pointwise(config)
    if config.judge.learn in _VOTES:
        yield from _learning(config)
    yield (
        "search.on_reject",
        config.search.on_reject,
        "'append' unless judge.score='pointwise', whose judge can call a step wrong",
        config.search.on_reject == "append" or config.judge.score == "pointwise",
    )
    if config.judge.kind == "ratings":
        yield from _ratings(config)


def _who(config: Any) -> Iterator[Rule]:
    judge, world = config.judge, config.data.world
    yield (
        "judge.by",
        judge.by,
        "'self', or 'random', or 'oracle' in a world (data.world)",
        judge.by != "oracle" or world != "",
    )
    yield (
        "judge.by",
        judge.by,
        "another judge, or data.make_eft=True with prm.labels other than 'gold', which "
        "trains a PRM",
        judge.by != "prm" or (config.data.make_eft and config.prm.labels != "gold"),
    )
    yield (
        "judge.model",
        judge.model,
        f"'' with judge.by={judge.by!r}, which is no model of the loop",
        judge.model == "" or judge.by == "self",
    )
    yield (
        "judge.keep",
        judge.keep,
        f"0 with judge.by={judge.by!r}, with which the model does not judge",
        not judge.keep or not is_foreign(judge.by),
    )
    yield (
        "judge.mode",
        judge.mode,
        "'generate' with judge.by='http', which is asked for an explanation",
        judge.mode == "generate" or judge.by != "http",
    )
    yield (
        "judge.value",
        judge.value,
        f"'hard' with judge.by={judge.by!r}, whose verdicts have no probability",
        judge.value == "hard" or not (is_own(judge.by) or judge.by == "http"),
    )
    yield (
        "judge.kind",
        judge.kind,
        "'comparisons' with 'module:function' in judge.by or search.propose_by, which "
        "works on single steps",
        judge.kind != "ratings"
        or not (is_own(judge.by) or is_own(config.search.propose_by)),
    )
    yield (
        "judge.schedule",
        judge.schedule,
        "'full' with judge.by='module:function' or 'prm', which scores all candidates "
        "in one call",
        judge.schedule == "full" or not (is_own(judge.by) or judge.by == "prm"),
    )


def _how(config: Any) -> Iterator[Rule]:
    judge, world = config.judge, config.data.world
    yield (
        "judge.votes",
        judge.votes,
        "1, or judge.mode='generate' and judge.temperature above 0; otherwise all "
        "votes would be the same",
        judge.votes == 1 or (judge.mode == "generate" and judge.temperature > 0),
    )
    yield (
        "judge.votes",
        judge.votes,
        f"1 with judge.by={judge.by!r}, which says the same each time",
        judge.votes == 1 or not is_foreign(judge.by),
    )
    yield (
        "judge.tie",
        judge.tie,
        "False with a data.world, whose EFT rows have no ties, or with data.make_eft, "
        "whose teacher names one of two steps",
        not judge.tie or (world == "" and not config.data.make_eft),
    )


def _margin(config: Any) -> Iterator[Rule]:
    """Yields the rules of the least difference of two scores that make a pair."""
    width, judge, least = config.search.width, config.judge, config.pairs.min_margin
    shares = ""
    if judge.value == "probability":
        shares = "judge.value='probability', whose scores are win rates"
    elif judge.score == "pointwise" and judge.votes > 1:
        shares = (
            f"judge.score='pointwise' and judge.votes={judge.votes}, whose scores are "
            "shares of votes"
        )
    if shares:
        yield (
            "pairs.min_margin",
            least,
            f"below 1 with {shares} from 0 to 1; 0 keeps all pairs",
            least < 1,
        )
        return
    most = (width - 1) * (2 if judge.score == "sum" else 1)
    most = 1 if judge.score == "pointwise" else most
    most = 9 if judge.kind == "ratings" else most
    yield (
        "pairs.min_margin",
        least,
        f"at most {most}, the largest difference of two scores",
        is_own(judge.by) or width < 2 or least <= most,
    )


def _pointwise(config: Any) -> Iterator[Rule]:
    """Yields the rules of a judge that sees each step alone."""
    judge, alone = config.judge, "with judge.score='pointwise', which compares nothing"
    yield "judge.schedule", judge.schedule, f"'full' {alone}", judge.schedule == "full"
    yield "judge.tie", judge.tie, f"False {alone}", not judge.tie
    yield (
        "judge.by",
        judge.by,
        "another judge with judge.score='pointwise', because such a function scores "
        "each step alone already",
        not is_own(judge.by),
    )
    yield (
        "judge.kind",
        judge.kind,
        "'comparisons' with judge.score='pointwise', which judges single steps",
        judge.kind == "comparisons",
    )


def _learning(config: Any) -> Iterator[Rule]:
    """Yields the rules of a judge that learns from its own explanations."""
    judge, learn = config.judge, config.judge.learn
    found = judge.by, judge.model, judge.mode, judge.kind
    yield (
        "judge.by, judge.model, judge.mode, judge.kind",
        found,
        f"('self', '', 'generate', 'comparisons') with judge.learn={learn!r}, which "
        "trains the model on explanations of its own",
        found == ("self", "", "generate", "comparisons"),
    )
    yield (
        "judge.score",
        judge.score,
        f"'sum' or 'consistent' with judge.learn={learn!r}, because both orders of a "
        "pair have to be asked",
        judge.score in ("sum", "consistent"),
    )
    least, why = _VOTES[learn]
    yield (
        "judge.votes",
        judge.votes,
        f"{least} or more with judge.learn={learn!r}, which {why}",
        judge.votes >= least,
    )
    yield (
        "judge.learn",
        learn,
        "'none' or 'consistency', because only a world (data.world) knows the gold",
        learn != "outcome" or config.data.world != "",
    )


def _ratings(config: Any) -> Iterator[Rule]:
    """Yields the rules of the baseline that rates whole solutions."""
    judge, rated = config.judge, "with judge.kind='ratings'"
    only = {"by": "self", "mode": "generate", "schedule": "full"}
    only |= {"value": "hard", "votes": 1, "tie": False}
    for name, value in only.items():
        found = judge[name]
        yield f"judge.{name}", found, f"{value!r} {rated}", found == value
    best = config.pairs.best_beats_all
    words = f"False {rated}: ratings compare nothing"
    yield "pairs.best_beats_all", best, words, not best
