"""From pairs of steps to judgments that teach (EFT): what is asked, and what is kept.

Paper (arXiv 2503.03746, section 3.1): a pair is the best and the worst next step by the
PRM. A teacher judges it twice, with the two steps swapped. The pair is kept if the two
verdicts agree with each other and with the PRM.

    prompts = eft.requests(pairs, templates)
    kept = eft.keep(pairs, ask(prompts), templates)

The same filter serves pairs that people rated; then `truth` is "the people".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from stepjax import prompts
from stepjax.initial_data.teacher_answers import Answer
from stepjax.prompts import Templates
from stepjax.records import Comparison, Preference
from stepjax.run.text_table import text_table
from stepjax.verdicts import marks

# Share of the comparisons that a world makes to learn from, in which both are wrong.
BOTH_WRONG = 0.3
KEPT, UNDECIDED = "kept", "kept, undecided"
SAME = "both steps are the same"
CUT_OFF = "answer cut off"
NO_VERDICT = "no verdict"
TWO_VERDICTS = "two different verdicts in one answer"
CONTRADICTION = "verdicts contradict each other"
EMPTY = "empty explanation"
EXPLANATIONS = ("none", "template")  # of `rated`


class Kept(NamedTuple):
    """What the filter made of the pairs.

    Attributes:
      rows: two for each pair that was kept, one per order.
      reasons: what happened to the pairs → how many. The numbers add up to the number
        of pairs; every reason is there, also with 0.
      dropped: one for each pair that was dropped: its id, the reason, and both answers.
    """

    rows: list[Comparison]
    reasons: dict[str, int]
    dropped: list[dict[str, Any]]


def judge_prompt(
    templates: Templates, problem: str, steps: Sequence[str], a: str, b: str
) -> str:
    """Returns the prompt of a judgment, as the model's own judge sees it.

    Args:
      templates: the prompt texts.
      problem: text of the problem.
      steps: texts of the steps so far.
      a: the next step that is shown first.
      b: the next step that is shown second.
    """
    head, before_a, between, tail = prompts.judge_pieces(templates, problem)
    so_far = "".join(f"{step}\n" for step in steps)
    return f"{head}{so_far}{before_a}{a}\n{between}{b}\n{tail}"


def requests(pairs: Sequence[Preference], templates: Templates) -> list[str]:
    """Returns the prompts for a teacher: two per pair, the chosen step first as A.

    Args:
      pairs: the pairs.
      templates: the prompt texts.
    """
    return [
        judge_prompt(templates, row.problem, row.steps, row.a, row.b)
        for pair in pairs
        for row in _orders(pair, ("", ""))
    ]


def replay_rows(
    pairs: Sequence[Preference], texts: Sequence[str], templates: Templates
) -> list[dict[str, Any]]:
    """Returns answers as rows of a file for `teacher.replay`.

    Args:
      pairs: the pairs.
      texts: of the answers to the prompts of `requests`, in their order.
      templates: the prompt texts.
    """
    return [
        {"prompt": prompt, "text": text}
        for prompt, text in zip(requests(pairs, templates), texts, strict=True)
    ]


def keep(
    pairs: Sequence[Preference],
    answers: Sequence[Answer],
    templates: Templates,
    *,
    truth: str = "the PRM",
    undecided_margin: float = 0.0,
    margins: Sequence[float] | None = None,
    explained: bool = True,
) -> Kept:
    """Keeps the pairs on which the teacher agrees with itself and with the truth.

    The last verdict that an answer gives counts. The explanation is the text before it;
    text after the verdict, emphasis around it, and white space at the beginning are
    left out. An answer that repeats its verdict ends at the first one, as the model's
    judge does.

    A pair is undecided if the teacher says "A" in both orders, because it finds neither
    step better, and the PRM sees hardly a difference. With `undecided_margin`, such
    pairs are also kept. From them a model learns to say "A" in both orders where
    neither step is better; these two verdicts cancel out in the scores of a search.
    Without them it never sees such a pair, and prefers one of two wrong steps.

    Args:
      pairs: the pairs; `chosen` is the better step by the PRM, or by people.
      answers: to the prompts of `requests`, in their order.
      templates: the prompt texts; their verdicts are looked for.
      truth: whose choice the pairs hold, for the table.
      undecided_margin: undecided pairs are kept whose margin is below this; 0 keeps
        none, as in the paper.
      margins: PRM probability of the chosen step minus that of the rejected one, for
        each pair; only needed with `undecided_margin`.
      explained: whether answers without an explanation are dropped.

    Returns:
      The rows, the table of reasons, and what was dropped. Row ids are the pair's id
      with "-ab" (chosen first) and "-ba".

    Raises:
      ValueError: the numbers of pairs, answers and margins do not fit each other.
    """
    if len(answers) != 2 * len(pairs):
        raise ValueError(
            f"{len(answers)} answers for {len(pairs)} pairs; expected two per pair, in "
            "the order of `requests`."
        )
    if undecided_margin and (margins is None or len(margins) != len(pairs)):
        raise ValueError(
            f"undecided_margin={undecided_margin} with "
            f"{'no' if margins is None else len(margins)} margins for {len(pairs)} "
            "pairs; expected one per pair."
        )
    disagrees = f"teacher disagrees with {truth}"
    reasons = {KEPT: 0} | ({UNDECIDED: 0} if undecided_margin else {})
    reasons |= dict.fromkeys(
        (SAME, CUT_OFF, NO_VERDICT, TWO_VERDICTS, CONTRADICTION, disagrees, EMPTY), 0
    )
    rows, dropped = [], []
    for number, pair in enumerate(pairs):
        both = answers[2 * number : 2 * number + 2]
        read = [_read(templates, answer.text) for answer in both]
        verdicts = tuple(verdict for verdict, _ in read)
        explanations = tuple(explanation for _, explanation in read)
        undecided = (
            undecided_margin
            and verdicts == ("A", "A")
            and abs(margins[number]) < undecided_margin
        )
        if pair.chosen == pair.rejected:
            reason = SAME
        elif not all(answer.finished for answer in both):
            reason = CUT_OFF
        elif None in verdicts:
            reason = NO_VERDICT
        elif None in explanations:
            reason = TWO_VERDICTS
        elif verdicts[0] == verdicts[1] and not undecided:
            reason = CONTRADICTION
        elif verdicts == ("B", "A"):
            reason = disagrees
        elif explained and not all(text.strip() for text in explanations):
            reason = EMPTY
        else:
            reason = UNDECIDED if undecided else KEPT
        reasons[reason] += 1
        if reason in (KEPT, UNDECIDED):
            rows += _orders(pair, explanations, verdicts)
        else:
            texts = [answer.text for answer in both]
            dropped.append({"id": pair.id, "reason": reason, "answers": texts})
    return Kept(rows, reasons, dropped)


def rated(
    pairs: Sequence[Preference], explanation: str = "template"
) -> list[Comparison]:
    """Makes judgments of pairs that people rated, without a teacher.

    Args:
      pairs: the pairs; people rated `chosen` right and `rejected` wrong.
      explanation: "template" gives each row one sentence that names the right and the
        wrong step; "none" leaves the explanation empty.

    Returns:
      Two rows per pair, with the ids of `keep`.

    Raises:
      ValueError: another explanation, or the two steps of a pair have the same text.
    """
    if explanation not in EXPLANATIONS:
        raise ValueError(
            f"explanation={explanation!r}; expected one of {EXPLANATIONS}."
        )
    sentence = "Candidate {} is right, and candidate {} is wrong. "
    texts = ("", "")
    if explanation == "template":
        texts = (sentence.format("A", "B"), sentence.format("B", "A"))
    for pair in pairs:
        if pair.chosen == pair.rejected:
            raise ValueError(
                f"pair {pair.id!r} holds the same step twice, {pair.chosen[:80]!r}; "
                "expected two different texts. Leave the pair out."
            )
    return [row for pair in pairs for row in _orders(pair, texts)]


def table(reasons: dict[str, int]) -> str:
    """Returns the table of what happened to the pairs, as plain text.

    Args:
      reasons: from `Kept`.
    """
    total = sum(reasons.values())
    rows = [
        {
            "pairs": reason,
            "number": f"{count:,}",
            "share": f"{100 * count / total:.1f} %" if total else "-",
        }
        for reason, count in (*reasons.items(), ("all", total))
    ]
    return text_table(rows, "EFT filter")


def _orders(
    pair: Preference,
    explanations: tuple[str, str],
    verdicts: tuple[str, str] = ("A", "B"),
) -> list[Comparison]:
    """Returns two rows: the chosen step is shown first, then second."""
    start = pair.problem, pair.steps
    first, second = (pair.chosen, pair.rejected), (pair.rejected, pair.chosen)
    return [
        Comparison(f"{pair.id}-ab", *start, *first, verdicts[0], explanations[0]),
        Comparison(f"{pair.id}-ba", *start, *second, verdicts[1], explanations[1]),
    ]


def _read(templates: Templates, text: str) -> tuple[str | None, str | None]:
    """Returns verdict and explanation; no explanation where verdicts differ."""
    found = prompts.find_verdict(templates, text)
    if found is None:
        return None, None
    every = marks(templates.verdict, text)
    if any(mark.side != found.side for mark in every):
        return found.side, None
    # Emphasis that is opened before the verdict does not belong to the explanation.
    return found.side, text[: every[0].start].lstrip().rstrip("*_`")
