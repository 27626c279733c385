"""Writes docs/settings.md from stepjax/config.py: ``python docs/make_settings.py``.

What a setting means is the comment beside it, its default is that of
`stepjax.config.default`, and what it may be is `stepjax.run.ranges`.
"""

import pathlib
import re

import ml_collections

from stepjax import config
from stepjax.cli import config_table
from stepjax.run import ranges

PAGE = pathlib.Path(__file__).parent / "settings.md"

# Section → its title, and what the page says of it.
SECTIONS = {
    "": ("The run", ""),
    "model": ("model", "The decoder, and where M0 comes from."),
    "prompts": ("prompts", "The texts around problems, steps and verdicts."),
    "data": ("data", "Where the rows come from; see [data.md](data.md)."),
    "prm": (
        "prm",
        "The process reward model of the initial data. This section and the next three "
        "are read with `data.make_eft`, and by `stepjax init-data`; see "
        "[initial_data.md](initial_data.md).",
    ),
    "rollouts": ("rollouts", "Step labels from completions."),
    "mcts": ("mcts", ""),
    "teacher": ("teacher", ""),
    "mesh": ("mesh", "The devices of training, see [tpu.md](tpu.md)."),
    "train": ("train", "What SFT and step-DPO share."),
    "lora": ("lora", ""),
    "sft": ("sft", "M0 → M1."),
    "phase": (
        "A phase of SFT",
        "Each of `sft.phases`, `prm.phase` and `mcts.phase`: `config.phase(...)`.",
    ),
    "optimizer": (
        "An optimizer",
        "AdamW's settings, of a phase and of `dpo`: `config.optimizer(...)`.",
    ),
    "search": ("search", "How a model samples and judges its steps."),
    "judge": ("judge", "How candidates are compared."),
    "srlm": ("srlm", ""),
    "pairs": ("pairs", "Which preferences are kept."),
    "dpo": ("dpo", "Mi → M(i+1)."),
    "eval": ("eval", "How a model is measured."),
}

HEAD = """# Settings

This page is made by `python docs/make_settings.py` from
[`stepjax/config.py`](../stepjax/config.py); a test compares the two. A config file
calls `stepjax.config.default()` and sets what differs. On the command line,
`--config.search.width=4` changes one setting of the file that `--config` names.
`stepjax config --config=FILE` prints the settings of a file and marks those that it
changes.

"May be" names the numbers or words that are accepted. Where it is empty, the setting
is a text of any kind, a list, or True or False. "Paper" is arXiv 2503.03746.
"""


def page() -> str:
    """Returns the text of docs/settings.md."""
    rows = {section: [] for section in SECTIONS}
    about = {section: text for section, (_, text) in SECTIONS.items()}
    for name, meaning in config_table.comments().items():
        section, _, key = name.rpartition(".")
        if name in SECTIONS:  # its comment in config.py is about the whole section
            about[name] = about[name] or f"{_text(meaning)}."
        elif section in SECTIONS:
            shown = key if section in ("phase", "optimizer") else name
            cells = f"`{shown}`", _default(name), _allowed(name), _text(meaning)
            rows[section].append(f"| {' | '.join(cells)} |")
    parts = [HEAD]
    for section, (title, _) in SECTIONS.items():
        lines = [f"## {title}", ""]
        if about[section]:
            lines += [about[section], ""]
        lines += ["| setting | default | may be | meaning |", "|---|---|---|---|"]
        parts.append("\n".join(lines + rows[section]) + "\n")
    return "\n".join(parts)


def _default(name: str) -> str:
    """Returns the default of a setting as Markdown."""
    section, _, key = name.partition(".")
    if name == "optimizer.learning_rate":
        return "none"
    if section == "optimizer":
        values = {"optimizer": config.optimizer(learning_rate=0.0)}
    else:
        values = {"phase": config.phase()} | dict(config.default().items())
    value = values[section]
    for part in key.split(".") if key else ():
        value = value[part]
    if isinstance(value, ml_collections.ConfigDict):
        kind = "an optimizer" if "learning_rate" in value else "a phase"
        first = "learning_rate" if "learning_rate" in value else "name"
        return f"{kind}, `{first}={value[first]!r}`"
    if name == "sft.phases":
        return "one phase, as below"
    return f"`{value!r}`"


def _allowed(name: str) -> str:
    """Returns what a setting may be, in words; "" where that is not known."""
    section, _, key = name.partition(".")
    inside = {"phase": "prm.phase.", "optimizer": "dpo.optimizer."}
    if section in inside:
        name = inside[section] + key
    words = ranges.words(name)
    choices = re.findall("'[^']*'", words)
    return ", ".join(f"`{choice}`" for choice in choices) or words


def _text(text: str) -> str:
    return text[:1].upper() + text[1:].replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
