"""Preferences between two next steps: rows of TRL and of Step-DPO.

Readers take one row apart: (row, name, templates) → records. Writers make one row of a
`Preference`; what they write, the readers read back as it was, but for the id.
"""

import re
import reprlib
from typing import Any

from stepjax import prompts
from stepjax.initial_data.formats import fields
from stepjax.prompts import Templates
from stepjax.records import Preference

_OPENING = "Let's think step by step."  # how Step-DPO's answers begin
_STEP_DPO_MARKER = re.compile(r"(?:\A|\n|step by step\.)\s*Step \d+:")


def _preference(
    name: str,
    problem: str,
    steps: tuple[str, ...],
    texts: tuple[str, str],
    t: Templates,
) -> list[Preference]:
    """Makes the preference of (chosen, rejected), checked."""
    chosen, rejected = (fields.step(t, len(steps) + 1, text) for text in texts)
    if chosen == rejected:
        raise ValueError(
            f"chosen and rejected are the same ({chosen[:40]!r}); expected two steps."
        )
    return [Preference(name, problem, steps, chosen, rejected)]


def step_dpo(row: dict[str, Any], name: str, templates: Templates) -> list[Preference]:
    """Makes a preference of a Step-DPO row (arXiv 2406.18629).

    Args:
      row: {"prompt", "initial_reason_steps", "chosen", "rejected", ...}. The prompt is
        the problem; the initial steps may begin with "Let's think step by step." and
        end with the marker of the next step; the last two are that step's text. The
        steps are numbered anew. Further fields are ignored.
      name: id of a row without one.
      templates: their step marker begins each step.
    """
    before, *texts = _STEP_DPO_MARKER.split(
        fields.field(row, "initial_reason_steps", str)
    )
    if before.strip().removesuffix(".") not in ("", "Let's think", _OPENING[:-1]):
        raise ValueError(
            f"field 'initial_reason_steps' is {before[:40]!r} and then its steps; "
            f"expected {_OPENING!r} or nothing before 'Step 1:'."
        )
    if texts and not texts[-1].strip():
        texts.pop()  # only the marker of the next step
    inside = re.search(r"Step \d+:\s*\Z", texts[-1]) if texts else None
    if inside:
        raise ValueError(
            f"field 'initial_reason_steps' is {len(texts)} steps, and "
            f"{inside[0].strip()!r} in the line of the last one; expected every step "
            "on a line of its own, since what is one step cannot be told otherwise."
        )
    steps = fields.steps(templates, texts)
    both = fields.text(row, "chosen"), fields.text(row, "rejected")
    identity, problem = fields.identity(row, name), fields.text(row, "prompt")
    return _preference(identity, problem.strip(), steps, both, templates)


def to_step_dpo(row: Preference, templates: Templates) -> dict[str, str]:
    """Writes a preference as a row of Step-DPO.

    The answer and the rest of the two solutions are not known here: "answer" is "", and
    "full_chosen" and "full_rejected" hold the one step.

    Raises:
      ValueError: when a step holds a line that begins like a step of Step-DPO.
    """
    texts = []
    for number, step in enumerate((*row.steps, row.chosen, row.rejected), 1):
        number = min(number, len(row.steps) + 1)
        texts.append(step.removeprefix(prompts.marker(templates, number)))
        if re.search(r"\n\s*Step \d+:", step):
            raise ValueError(
                f"preference {row.id!r}: step {number} holds a line that begins with "
                "'Step n:'; expected none, since a reader would cut the step there."
            )
    *steps, chosen, rejected = texts
    lines = [f"Step {number}: {text}\n" for number, text in enumerate(steps, 1)]
    return {
        "dataset": "stepjax",
        "prompt": row.problem,
        "initial_reason_steps": f"{_OPENING}\n{''.join(lines)}Step {len(lines) + 1}:",
        "chosen": f" {chosen}",
        "rejected": f" {rejected}",
        "full_chosen": f" {chosen}",
        "full_rejected": f" {rejected}",
        "answer": "",
    }


def trl(row: dict[str, Any], name: str, templates: Templates) -> list[Preference]:
    r"""Makes a preference of a TRL preference row, standard or conversational.

    Where there is no "prompt", it is what both texts begin with, up to the line in
    which they differ (the word, if there is one line only), or the messages that both
    lists begin with. A prompt that our solver's template made is cut into the problem
    and the steps so far; any other prompt is the problem, without steps. A
    conversation must have one message of the user, and an assistant's message after
    it, if there is one, holds the steps so far; a system message is ignored.

    Args:
      row: {"prompt", "chosen", "rejected"} or {"chosen", "rejected"}.
      name: id of a row without one.
      templates: the solver's prompt and the marker of steps.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    identity = fields.identity(row, name)
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt = row.get("prompt")
        if prompt is None:
            same = _common(chosen, rejected)
            prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
        problem, steps = _cut_conversation(templates, prompt)
        both = _message(chosen, "chosen"), _message(rejected, "rejected")
        return _preference(identity, problem, steps, both, templates)
    chosen, rejected = fields.text(row, "chosen"), fields.text(row, "rejected")
    if row.get("prompt") is None:
        same = _common(chosen, rejected)
        cut = chosen.rfind("\n", 0, same) + 1 or chosen.rfind(" ", 0, same) + 1
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        if not prompt.strip():
            raise ValueError(
                f"no prompt: chosen begins with {chosen[:30]!r}, and rejected with "
                f"{rejected[:30]!r}; expected the field 'prompt', or texts that begin "
                "with the same prompt."
            )
    else:
        prompt = fields.text(row, "prompt")
    problem, steps = cut_prompt(templates, prompt)
    return _preference(identity, problem, steps, (chosen, rejected), templates)


def to_trl(row: Preference, templates: Templates) -> dict[str, str]:
    """Writes a preference as a TRL row: the solver's prompt with the steps so far, and
    the two steps. The newline behind a step belongs to the prompt of the next one.
    """
    lines = "".join(f"{step}\n" for step in row.steps)
    return {
        "prompt": prompts.solve_prompt(templates, row.problem) + lines,
        "chosen": row.chosen,
        "rejected": row.rejected,
    }


def cut_prompt(templates: Templates, text: str) -> tuple[str, tuple[str, ...]]:
    """Cuts a prompt into the problem and the steps so far.

    Args:
      templates: of the prompt.
      text: the solver's prompt and steps, or any other prompt.

    Returns:
      (problem, steps); without the solver's template the text is the problem.
    """
    before, _, after = templates.solve.partition("{problem}")
    at = text.find(after, len(before)) if text.startswith(before) else -1
    while at >= 0:
        rest = text[at + len(after) :].removesuffix("\n")
        try:
            steps = prompts.split_steps(templates, rest) if rest else []
        except ValueError:
            at = text.find(after, at + 1)  # those words were the problem's own
        else:
            return text[len(before) : at], tuple(steps)
    return text.strip(), ()


def _common(a: Any, b: Any) -> int:
    """Returns how many items two texts or lists begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _contents(messages: Any, name: str) -> list[tuple[str, str]]:
    """Takes (role, content) of each message but the system's."""
    if not isinstance(messages, list):
        raise ValueError(
            f"field {name!r} is {reprlib.repr(messages)}; expected a list of messages."
        )
    return [
        (message["role"], fields.text(message, "content"))
        for message in messages
        if fields.field(message, "role", str) != "system"  # its text may be empty
    ]


def _message(messages: Any, name: str) -> str:
    found = _contents(messages, name)
    if [role for role, _ in found] != ["assistant"]:
        raise ValueError(
            f"field {name!r} is messages of {[role for role, _ in found]}; expected "
            "one message of the assistant behind the prompt."
        )
    return found[0][1]


def _cut_conversation(t: Templates, messages: Any) -> tuple[str, tuple[str, ...]]:
    found = _contents(messages, "prompt")
    roles = [role for role, _ in found]
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError(
            f"field 'prompt' is messages of {roles}; expected one of the user and, "
            "with the steps so far, one of the assistant."
        )
    problem, steps = cut_prompt(t, found[0][1])
    if len(found) == 2:
        if steps:
            raise ValueError(
                "field 'prompt' is a prompt with steps and a message of the "
                "assistant; expected the steps in one of them."
            )
        steps = tuple(prompts.split_steps(t, found[1][1].strip()))
    return problem, steps
