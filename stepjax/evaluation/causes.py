"""Why a search made few pairs, or a model few answers, and which setting to change.

A warning counts what went wrong, names the setting to change, and shows the first text
that went wrong.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from stepjax import own_import, prompts
from stepjax.pairs import summary
from stepjax.settings import Settings
from stepjax.trajectory import (
    CUT_OFF,
    FAULTS,
    NO_MARKER,
    VERDICT,
    Refused,
    State,
    Verdict,
)

OFTEN = 0.2  # share above which something that goes wrong is worth a warning
_JUDGMENTS = 100  # least, before a judge is called useless
_WRITE = ("self", "http")  # judges that write; of others, None is no preference
_TEXT = 200  # most characters of a text in a warning


def of_search(
    states: Sequence[State], settings: Settings, *, by: str = ""
) -> list[str]:
    """Returns what kept searches from going on, as far as it happened often.

    Args:
      states: closed searches of one model.
      settings: of the run.
      by: who judged, a value of `judge.by`; "" is that of the settings.
    """
    counts = summary(states)
    messages = [
        _refused(fault, parts, int(counts["samples"]), settings)
        for fault, parts in _by_fault(states).items()
        if sum(part.count for part in parts) > OFTEN * counts["samples"]
    ]
    if counts["unparsed_rate"] > OFTEN and (by or settings.judge.by) in _WRITE:
        messages.append(_unparsed(_verdicts(states), settings))
    if states and counts["complete_rate"] < 1 - OFTEN:
        messages.append(_incomplete(states, settings))
    return messages


def of_useless_search(states: Sequence[State], settings: Settings) -> str:
    """Returns why a search can make no pairs, if nothing in its first problems is used.

    Args:
      states: closed searches of a model that makes pairs, at least one expansion each.
      settings: of the run.

    Returns:
      "" when a single sample is a candidate and a single judgment holds a verdict; also
      while there are fewer than 100 judgments, or when no model writes them.
    """
    expansions = [e for state in states for e in state.expansions]
    samples = int(summary(states)["samples"])
    faults = _by_fault(states)
    if not any(e.candidates for e in expansions) and any(faults.values()):
        fault = max(faults, key=lambda name: sum(x.count for x in faults[name]))
        reason = _refused(fault, faults[fault], samples, settings)
        return (
            f"none of the {samples} samples of its first {len(states)} problems can be "
            f"judged. {reason}"
        )
    verdicts = _verdicts(states)
    if settings.judge.by not in _WRITE or len(verdicts) < _JUDGMENTS:
        return ""
    if any(verdict.winner is not None for verdict in verdicts):
        return ""
    return (
        f"its judge has decided nothing in its first {len(states)} problems. "
        f"{_unparsed(verdicts, settings)}"
    )


def _verdicts(states: Sequence[State]) -> list[Verdict]:
    return [v for state in states for e in state.expansions for v in e.verdicts]


def _unparsed(verdicts: Sequence[Verdict], settings: Settings) -> str:
    """Returns the warning of judgments without a verdict, at least one."""
    unread = [v.response for v in verdicts if v.winner is None]
    setting, limit = "judge.max_tokens", settings.judge.max_tokens
    if settings.judge.kind == "ratings":
        setting, limit = "srlm.max_tokens", settings.srlm.max_tokens
    remedy = "train M1 longer on EFT rows (sft.phases)"
    if settings.judge.by == "http":
        setting, limit = "teacher.max_tokens", settings.teacher.max_tokens
        remedy = "take another model (teacher.model)"
    return (
        f"{_share(len(unread), len(verdicts), 'judgments')} hold no verdict. If "
        f"they are cut off, raise {setting}={limit}; otherwise {remedy}. The first "
        f"one is {shown(unread[0])}."
    )


def _by_fault(states: Sequence[State]) -> dict[str, list[Refused]]:
    """Returns reason → the samples that are no candidates because of it."""
    expansions = [e for state in states for e in state.expansions]
    every = list(itertools.chain.from_iterable(e.refused for e in expansions))
    return {fault: [x for x in every if x.fault == fault] for fault in FAULTS}


def _refused(
    fault: str, parts: Sequence[Refused], samples: int, settings: Settings
) -> str:
    """Returns the warning of samples that are no candidates for one reason."""
    solutions = settings.judge.kind == "ratings"
    unit = "sampled solutions" if solutions else "sampled steps"
    share = _share(sum(part.count for part in parts), samples, unit)
    first = f"The first one is {shown(parts[0].text)}."
    if own_import.named(settings.search.propose_by):
        return f"{share} {_refused_text(fault, settings)} {first}"
    if fault == CUT_OFF:
        setting, limit = "search.max_step_tokens", settings.search.max_step_tokens
        if solutions:
            setting, limit = "eval.max_tokens", settings.eval.max_tokens
        return f"{share} were cut off at {setting}={limit}. Raise {setting}. {first}"
    if fault == NO_MARKER:
        marker = prompts.marker(prompts.Templates(step=settings.texts.step), 1)
        return (
            f"{share} do not begin with the marker of their step (for step 1: "
            f"{marker!r}). Train M1 longer on IFT rows (sft.phases), or set "
            f"prompts.step to the marker that the model writes. {first}"
        )
    if fault == VERDICT:
        return (
            f"{share} hold a verdict, as only judgments may. Train M1 longer on IFT "
            "rows (sft.phases), or set prompts.verdict to a form that no step holds. "
            f"{first}"
        )
    missing = "hold no boxed answer" if solutions else "hold nothing after their marker"
    return (
        f"{share} {missing}. Train M1 longer on IFT rows (sft.phases), or lower "
        f"search.temperature={settings.search.temperature}. {first}"
    )


def _refused_text(fault: str, settings: Settings) -> str:
    """Returns why texts of a proposer of one's own are no steps, and what to change."""
    name, most = settings.search.propose_by, settings.search.max_step_tokens
    if fault == CUT_OFF:
        return (
            f"are longer than search.max_step_tokens={most}. Raise it, or let {name} "
            "return shorter texts."
        )
    if fault == VERDICT:
        return (
            f"hold a verdict, as only judgments may. Let {name} leave it out, or set "
            "prompts.verdict to a form that no step holds."
        )
    return f"are not one step each. Let {name} return the text of one step per item."


def _incomplete(states: Sequence[State], settings: Settings) -> str:
    """Returns the warning of searches that did not reach the end of a solution."""
    closed = [state.status for state in states]
    parts = []
    if "budget" in closed:
        parts.append(
            f"{closed.count('budget')} used up search.max_expansions="
            f"{settings.search.max_expansions}, which a search also does while its "
            "steps are refused or tie"
        )
    if "length" in closed:
        parts.append(
            f"{closed.count('length')} found no room for another step in "
            f"search.context_tokens={settings.search.context_tokens} or "
            f"judge.context_tokens={settings.judge.context_tokens}"
        )
    unfinished = len(closed) - closed.count("complete")
    return (
        f"{_share(unfinished, len(closed), 'searches')} did not reach the end of a "
        f"solution: {'; '.join(parts)}. Raise the setting, or lengthen the training of "
        "M1, whose solutions should end with a boxed answer."
    )


def of_greedy(items: Sequence[Mapping[str, Any]], settings: Settings) -> list[str]:
    """Returns whether many greedy solutions did not end.

    Args:
      items: of `grading.greedy`.
      settings: of the run.
    """
    endless = [item for item in items if not item["finished"]]
    if len(endless) <= OFTEN * len(items):
        return []
    return [
        f"{_share(len(endless), len(items), 'greedy solutions')} did not end within "
        f"eval.max_tokens={settings.eval.max_tokens}. Raise eval.max_tokens, or train "
        "M1 longer on IFT rows (sft.phases), which end with the end-of-sequence token. "
        f"The first one is {shown(endless[0]['text'])}."
    ]


def no_pairs(counts: Mapping[str, float], by: str = "self") -> str:
    """Returns why a search made no preference pairs, and what to change.

    Args:
      counts: of the search, from `pairs.summary`.
      by: who judged, a value of `judge.by`.
    """
    if not counts["expansions"]:
        return (
            "No question left room for a step. Raise search.context_tokens and "
            "judge.context_tokens."
        )
    if counts["malformed_rate"] > 0.5:
        return (
            f"{counts['malformed_rate']:.0%} of its samples were refused; the warnings "
            "after its search say why."
        )
    if not counts["judgments"]:
        return (
            "The samples of each step were all the same. Raise search.temperature, "
            "search.width or search.redraw."
        )
    if counts["unparsed_rate"] > 0.5 and by in _WRITE:
        return (
            f"{counts['unparsed_rate']:.0%} of its judgments hold no verdict; the "
            "warnings after its search say why."
        )
    return (
        "The judge gave all candidates of each step the same score, or the settings "
        "pairs.min_margin and pairs.best_beats_all kept none of the pairs. Ask more "
        "questions, raise search.temperature, or relax these settings."
    )


def left_out(states: Sequence[State], pairs: int, settings: Settings) -> str:
    """Returns how many preferences of searches make no pair, and by which settings.

    Args:
      states: closed searches.
      pairs: that they made.
      settings: of the run.

    Returns:
      A remark in brackets with a blank in front, "" where all of them make a pair.
    """
    found = sum(index is not None for state in states for index in state.pair_from)
    if pairs == found:
        return ""
    options = settings.pairs
    return (
        f" ({found - pairs} of {found} preferences are left out by pairs.min_margin="
        f"{options.min_margin:g} and pairs.best_beats_all={options.best_beats_all})"
    )


def shown(text: str) -> str:
    """Returns a text between quotation marks on one line, shortened in the middle."""
    if len(text) > _TEXT:
        half = _TEXT // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    return repr(text)


def _share(count: int, total: int, unit: str) -> str:
    """Returns "83 % of the sampled steps (20 of 24)"."""
    return f"{100 * count / total:.0f} % of the {unit} ({count} of {total})"
