"""Two samples of every evaluation, as text: one that is right and one that is wrong."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 800  # characters of a problem, an answer or a judgment


def pick(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the first right item and the first wrong one, or the first two."""
    right = [item for item in items if item["right"]]
    wrong = [item for item in items if not item["right"]]
    return [*right[:1], *wrong[:1]] if right and wrong else list(items[:2])


def text_of(item: Mapping[str, Any]) -> str:
    """Returns an item of an evaluation as lines of text.

    Args:
      item: of `grading.greedy`, `grading.judge_accuracy` or `grading.searched`.
    """
    outcome = "right" if item["right"] else "wrong"
    given = "none" if item["prediction"] is None else item["prediction"]
    if "response" in item:
        head = f"{item['id']}: {outcome}, verdict {given}, right is {item['answer']}"
        named = zip("AB", item["candidates"], strict=False)
        shown = [f"{side}: {text}" for side, text in named]
        parts = [item["problem"], *item["steps"], *shown]
        parts.append(f"judgment: {item['response']}")
    else:
        head = f"{item['id']}: {outcome}, answer {given}, right is {item['answer']}"
        parts = [item["problem"], item["text"]]
    if item.get("finished") is False:
        head += ", not ended"
    if item.get("status", "complete") != "complete":
        head += f", closed because of its {item['status']}"
    return "\n".join([head, *(indented(part) for part in parts if part)])


def indented(text: str, by: int = 4) -> str:
    """Returns a text with every line indented, cut after 800 characters."""
    if len(text) > _MOST:
        text = f"{text[:_MOST]} [... {len(text) - _MOST} more characters]"
    return textwrap.indent(text, " " * by, lambda line: True)
