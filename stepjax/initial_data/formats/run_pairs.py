"""The pairs of a finished search of ours, pairs.jsonl, as preferences."""

import os
from pathlib import Path

from stepjax import config, prompts, records, settings
from stepjax.codec import Codec
from stepjax.initial_data.formats import files, sources
from stepjax.lm import files as lm_files
from stepjax.lm import tokenizer
from stepjax.pairs import Pair
from stepjax.prompts import Templates
from stepjax.records import Preference
from stepjax.run import manifest, world_rows


def read(
    path: str | os.PathLike, rejects: files.Rejects | None = None
) -> tuple[list[Preference], Templates]:
    """Reads the pairs of a run, and the run's templates.

    A row has the steps so far as token ids only, so the run's tokenizer and settings
    are also read.

    Args:
      path: DIR/M1/pairs.jsonl, where DIR is the run's directory.
      rejects: where bad rows are listed; None stops at the first.

    Raises:
      ValueError: when the run's settings or its tokenizer cannot be read, or the file
        has changed since the search wrote it; for a row as in `sources.read`, or one
        whose ids are not those of its problem and steps.
    """
    folder = Path(path).resolve().parent.parent
    manifest.check(Path(path), Path(path).resolve().with_name("search.json"))
    try:
        values = lm_files.read_json(folder / "config.json")
    except OSError as error:
        raise ValueError(
            f"{folder / 'config.json'}: cannot be read ({error.strerror}); expected "
            f"{path} to be a file of a run, as in DIR/M1/pairs.jsonl."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{folder / 'config.json'}: broken JSON ({error}); expected the settings "
            "of a run. The file is damaged."
        ) from error
    try:
        made = settings.from_config(config.from_dict(values))
        ids = tokenizer.load(folder / "tokenizer")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{folder}: its config.json or its tokenizer is none of a run of stepjax "
            f"({type(error).__name__}: {error}); expected {path} to be a file of a "
            "run, as in DIR/M1/pairs.jsonl."
        ) from error
    texts = settings.templates(made.texts, world_rows.templates(made.data.world))
    codec = Codec(ids, texts)

    def parse(row: dict, name: str, templates: Templates) -> list[Preference]:
        del name  # a pair has an id
        pair = records.from_object(row, Pair)
        prompt = codec.solve_prompt(pair.problem)
        begins, rest = pair.context_ids[: len(prompt)], pair.context_ids[len(prompt) :]
        if tuple(begins) != prompt:
            raise ValueError(
                f"the ids of the context say {ids.decode(begins)[:60]!r}; expected the "
                "prompt of the problem and its steps. Is the tokenizer the run's own?"
            )
        steps = prompts.split_steps(templates, codec.text(rest)) if rest else ()
        return [
            Preference(pair.id, pair.problem, tuple(steps), pair.chosen, pair.rejected)
        ]

    return sources.read_with(path, parse, "pairs", texts, rejects), texts
