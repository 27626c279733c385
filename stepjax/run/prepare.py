"""The first stage of a run: its data and its tokenizer, made once, and made good."""

import dataclasses
import pathlib
from collections.abc import Sequence

from stepjax.lm import files, hosts, pretrained
from stepjax.prompts import Templates
from stepjax.run import data, mend_data, more_questions
from stepjax.run.rundir import RunDirectory, Stage
from stepjax.settings import Settings


def prepare(settings: Settings, texts: Templates, directory: RunDirectory) -> Stage:
    """Writes the data files and the tokenizer of a run, once; returns the stage.

    Args:
      settings: of the run.
      texts: its templates.
      directory: its directory.

    Raises:
      ValueError: see `data.make_data` and `data.make_tokenizer`; or what was written is
        damaged, and the settings no longer give the same.
    """
    folder = directory.path / "data"

    def make(place: pathlib.Path, dealt: Sequence[int]) -> dict[str, int]:
        with files.named(place / "tokenizer"):
            data.make_tokenizer(settings, place / "tokenizer")
        at_first, *later = [
            dataclasses.replace(settings, iterations=iterations) for iterations in dealt
        ]
        counts = data.make_data(at_first, texts, place / "data")
        for longer in later:
            counts |= more_questions.write(longer, texts, place / "data", counts)
        return counts

    wrong, dealt = hosts.agreed(
        "data mended", lambda: mend_data.mend(directory, make, settings.iterations)
    )
    if wrong:
        raise ValueError(wrong)
    stage = directory.stage("prepare", folder / "manifest.json", {})
    if stage.done:
        return stage
    written, counts = [], {}
    if hosts.first():
        counts = make(directory.path, dealt)
        files.sync_all(directory.path / "tokenizer")
        written = [f"{name}.jsonl" for name in counts]
        ids = sorted((directory.path / "tokenizer").iterdir())
        written += [f"../tokenizer/{path.name}" for path in ids]
        counts = {n: c for n, c in counts.items() if not n.startswith("equations_")}
    weights = pretrained.place(settings.init)
    # Each number of iterations for which questions were dealt out, see more_questions.
    done = {"dealt": list(dealt), "initial_weights": weights}
    stage.commit(written, counts=counts, **done)
    return stage
