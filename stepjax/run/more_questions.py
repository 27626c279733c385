"""Questions of further iterations, for a run whose `iterations` has been raised.

Nothing that the run has made changes: the new questions are none of its problems, and
only ``DIR/data/questions_N.jsonl`` is added, and with word problems
``DIR/data/equations_N.jsonl``.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from stepjax import records
from stepjax.lm import hosts
from stepjax.prompts import Templates
from stepjax.run import data, world_rows
from stepjax.run.rundir import Stage
from stepjax.settings import Settings
from stepjax.worlds import word_problems_data


def add(settings: Settings, texts: Templates, prepared: Stage) -> None:
    """Adds the questions of the iterations that have none yet.

    Args:
      settings: of the run.
      texts: its templates.
      prepared: the stage that made its data; it is committed again.

    Raises:
      ValueError: when there are too few problems left.
    """
    folder, counts = prepared.manifest.parent, prepared.done["counts"]
    made = sum(name.startswith("questions_") for name in counts)
    if not settings.data.questions and settings.iterations > made:
        raise ValueError(
            f"iterations={settings.iterations} with data.questions=(), which has dealt "
            f"out all questions to {made} iterations; expected iterations={made}. "
            "Choose another --workdir for more."
        )
    if settings.iterations <= made or not settings.data.questions:
        return
    written, new = list(prepared.done["files"]), {}
    if hosts.first():
        new = write(settings, texts, folder, counts)
        written += [f"{name}.jsonl" for name in new]
    kept = {"initial_weights": prepared.done["initial_weights"]}
    asked = {name: n for name, n in new.items() if name.startswith("questions_")}
    dealt = [*prepared.done.get("dealt", [made]), settings.iterations]
    prepared.commit(written, counts=counts | asked, dealt=dealt, **kept)


def write(
    settings: Settings,
    texts: Templates,
    folder: pathlib.Path,
    counts: Mapping[str, int],
) -> dict[str, int]:
    """Writes the questions of the iterations that have none yet.

    Args:
      settings: of the run.
      texts: its templates.
      folder: of its data.
      counts: name → number of rows, of the files that are there.

    Returns:
      The same of those that are new.

    Raises:
      ValueError: when there are too few problems left.
    """
    made = sum(name.startswith("questions_") for name in counts)
    every = settings.data.counts(settings.iterations)
    wanted = {f"questions_{n}": count for n, count in enumerate(every, 1) if n > made}
    rows, new = _draw(settings, texts, folder, counts, wanted), {}
    if settings.data.world == "word_problems":
        name = f"equations_{made + 1}"
        records.write_jsonl(folder / f"{name}.jsonl", rows)
        new[name] = len(rows)
    for name, count in wanted.items():
        part, rows = rows[:count], rows[count:]
        asked = [records.Question(row.id, row.problem) for row in part]
        records.write_jsonl(folder / f"{name}.jsonl", asked)
        new[name] = count
    return new


def _draw(
    settings: Settings,
    texts: Templates,
    folder: pathlib.Path,
    counts: Mapping[str, int],
    wanted: dict[str, int],
) -> list[Any]:
    """Returns new problems, each with `id` and `problem`, that the run has not seen."""
    options, total = settings.data, sum(wanted.values())
    paths = [folder / f"{n}.jsonl" for n in counts]
    paths = [path for path in paths if not path.name.startswith("equations")]
    seen = {row["problem"] for path in paths for _, row in records.read_objects(path)}
    known = [records.Question(text, text) for text in sorted(seen)]
    if options.world == "word_problems":
        equations = word_problems_data.read_equations(options.equations)
        return word_problems_data.further(equations, known, total, seed=settings.seed)
    if options.world:
        return world_rows.further(settings, seen, wanted)
    name = "data.question_file"
    how = {"texts": texts, "strict": options.strict}
    pool = data.read_questions(name, options.question_file, options, **how)
    stated = f"the questions of iterations {', '.join(n[10:] for n in wanted)}"
    return data.unused(name, pool, {"the run": known}, total, stated)[:total]
