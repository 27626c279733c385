"""Files of problems that models are measured on: benchmarks as they were published.

GSM8K, MATH, MATH-500, Gaokao2023En, OlympiadBench, AIME 2024, AMC 2023 and SVAMP are
read in the layouts in which they are published, see `initial_data.formats.published`.
An answer is right when it means the same as the gold one. A difference is allowed only
where the benchmark states how large it may be: OlympiadBench, in its field "error".
"""

import collections
import hashlib
import pathlib
import re
from collections.abc import Sequence

from stepjax import records
from stepjax.initial_data.formats import sources
from stepjax.initial_data.formats.tfds_files import PREFIX
from stepjax.lm import files, hosts
from stepjax.prompts import Templates
from stepjax.run.manifest import file_digest

LIST = "benchmarks.json"  # in DIR/eval: those of `eval.benchmarks`


def read(source: str | pathlib.Path, texts: Templates) -> list[records.Problem]:
    """Reads the problems of a benchmark, as it was published or as people write it.

    Args:
      source: a file of JSON, JSON lines, CSV or parquet, or an address of TFDS. A row
        has the problem ("problem" or "question") and the answer, a text or a number;
        see `initial_data.formats.own`. Further fields are passed over.
      texts: templates of the run.

    Raises:
      ValueError: "PATH:LINE (id ID): reason; expected ..." for a row without a problem
        or an answer; see also `initial_data.formats.tfds`.
    """
    return sources.read(source, "benchmark", "problem", texts)


def repeated(name: str, problems: Sequence[records.Problem]) -> list[str]:
    """Returns a warning if a benchmark has a problem more than once, else [].

    All rows count, so that the result is that of the file as it was published.

    Args:
      name: of the benchmark, for people.
      problems: its rows; with or without answers.
    """
    first: dict[str, str] = {}
    repeats = []
    for row in problems:
        text = " ".join(row.problem.split())
        if text in first:
            repeats.append(f"{row.id} repeats {first[text]}")
        first.setdefault(text, row.id)
    if not repeats:
        return []
    return [
        f"{name}: {len(repeats)} of {len(problems)} rows have the problem of an "
        f"earlier row, {repeats[0]} first; each row counts, as it does in the file."
    ]


def file_of(source: str, folder: pathlib.Path, texts: Templates) -> pathlib.Path:
    """Returns the file of a benchmark; rows of TFDS are copied into a file first.

    Args:
      source: a path, or an address of TFDS.
      folder: of evaluation, DIR/eval.
      texts: templates of the run.
    """
    if not source.startswith(PREFIX):
        return pathlib.Path(source)
    name, _, options = source.removeprefix(PREFIX).partition("?")
    name = re.sub(r"[^A-Za-z0-9._]+", "-", name)
    if options:  # which may give other rows of the same dataset
        name += f"-{hashlib.sha256(options.encode()).hexdigest()[:8]}"
    path = folder / "benchmarks" / f"{name}.jsonl"
    if hosts.first():
        files.make_folder(path.parent)
        records.write_jsonl(path, read(source, texts))
    hosts.barrier(f"{path} copied")
    return path


def stem(file: pathlib.Path, digest: str) -> str:
    """Returns what the results of a file are called: its name and its content."""
    return f"{file.stem[:40]}-{digest[:8]}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Returns name → shorter name, without the digest of a file where that is enough.

    Args:
      names: parts of the names of result files, such as "gsm8k-0a1b2c3d".
    """
    short = {name: re.sub(r"-[0-9a-f]{8}$", "", name) for name in names}
    counted = collections.Counter(short.values())
    return {name: s if counted[s] == 1 else name for name, s in short.items()}


def note(folder: pathlib.Path, measured: list[pathlib.Path]) -> None:
    """Keeps the names of the results of `eval.benchmarks`, for tables and the report.

    Args:
      folder: of evaluation, DIR/eval.
      measured: their files.
    """
    if not hosts.first():
        return
    names = [stem(path, file_digest(path)) for path in measured]
    if names:
        files.make_folder(folder)
        files.write_json(folder / LIST, {"names": names})
    else:
        (folder / LIST).unlink(missing_ok=True)


def noted(folder: pathlib.Path) -> list[str]:
    """Returns the names that `note` kept."""
    path = folder / LIST
    return files.read_json(path)["names"] if path.exists() else []
