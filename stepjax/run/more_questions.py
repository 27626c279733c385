"""Questions of further iterations, for a run whose `iterations` has been raised.

Nothing that the run has made changes: the new questions are none of its problems, and
only ``DIR/data/questions_N.jsonl`` is added, and with word problems
``DIR/data/equations_N.jsonl``.
"""

from collections.abc import Mapping
from typing import Any

from stepjax import records
from stepjax.lm import hosts
from stepjax.prompts import Templates
from stepjax.run import data
from stepjax.run.rundir import Stage
from stepjax.settings import Settings
from stepjax.worlds import arithmetic, word_problems_data


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
    wanted = {
        f"questions_{number}": count
        for number, count in enumerate(settings.data.counts(settings.iterations), 1)
        if number > made
    }
    if not wanted:
        return
    written = list(prepared.done["files"])
    if hosts.first():
        rows = _draw(settings, texts, prepared, wanted)
        if settings.data.world == "word_problems":
            name = f"equations_{made + 1}.jsonl"
            records.write_jsonl(folder / name, rows)
            written.append(name)
        for name, count in wanted.items():
            part, rows = rows[:count], rows[count:]
            asked = [records.Question(row.id, row.problem) for row in part]
            records.write_jsonl(folder / f"{name}.jsonl", asked)
            written.append(f"{name}.jsonl")
    kept = {"initial_weights": prepared.done["initial_weights"]}
    prepared.commit(written, counts=counts | wanted, **kept)


def _draw(
    settings: Settings,
    texts: Templates,
    prepared: Stage,
    wanted: Mapping[str, int],
) -> list[Any]:
    """Returns new problems, each with `id` and `problem`, that the run has not seen."""
    options, total = settings.data, sum(wanted.values())
    folder = prepared.manifest.parent
    paths = [folder / f"{n}.jsonl" for n in prepared.done["counts"]]
    paths = [path for path in paths if not path.name.startswith("equations")]
    seen = {row["problem"] for path in paths for _, row in records.read_objects(path)}
    known = [records.Question(text, text) for text in sorted(seen)]
    if options.world == "arithmetic":
        shape = {"guessed_share": options.guessed_share}
        split = arithmetic.split(
            settings.seed, unseen_blocks=options.unseen_blocks, **shape
        )
        drawn = iter(
            arithmetic.problems(
                total,
                seed=settings.seed,
                operations=options.operations,
                blocks=split.judged,
                exclude=seen,
            )
        )
        return [
            records.Question(f"arith-q{name.rpartition('_')[2]}-{n}", next(drawn))
            for name, count in wanted.items()
            for n in range(count)
        ]
    if options.world == "word_problems":
        equations = word_problems_data.read_equations(options.equations)
        return word_problems_data.further(equations, known, total, seed=settings.seed)
    name = "data.question_file"
    pool = data.read_questions(name, options.question_file, options, texts)
    stated = f"the questions of iterations {', '.join(n[10:] for n in wanted)}"
    return data.unused(name, pool, {"the run": known}, total, stated)[:total]
