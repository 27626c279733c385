"""Lost or damaged files of a run's data and tokenizer are made again from its settings.

A file comes back if it is the same as before, byte for byte. If it is not, because a
file that the settings name has changed since, nothing is written.
"""

import itertools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

from stepjax.run import manifest as manifests
from stepjax.run import redo
from stepjax.run.rundir import RunDirectory


def mend(
    directory: RunDirectory,
    make: Callable[[pathlib.Path, Sequence[int]], object],
    iterations: int,
) -> tuple[str, Sequence[int]]:
    """Makes the files again that are lost or damaged, if any.

    When the manifest of the data is damaged, it is deleted, so that the stage runs
    again; it then writes the files that are there already.

    Args:
      directory: of the run.
      make: makes the folders "data" and "tokenizer" in a folder; its other argument is
        each number of iterations that the run has had questions for.
      iterations: how many the run has now.

    Returns:
      (why that cannot be done, in words, or "";
      each number of iterations that the stage has to deal out questions for).
    """
    folder = directory.path / "data"
    path, manifest = folder / "manifest.json", None
    nothing = "", (iterations,)
    if not directory.mends:
        return nothing
    later = [s for s in redo.made(directory.path) if s.stage != "prepare"]
    if not path.exists() and not (later and (folder / "ift.jsonl").exists()):
        return nothing  # nothing is there that other data could replace
    try:
        manifest = manifests.read(path)
        damage = manifests.changed_file(path, manifest)
    except FileNotFoundError:
        damage = f"{path} is gone"
    except ValueError as error:
        damage = str(error).partition("; ")[0]
    if not damage:
        return nothing
    directory.say(f"{damage}, so it is made again from the settings")
    if manifest:
        dealt = manifest.get("dealt", (iterations,))
        return _again(directory, make, manifest["files"], dealt, damage), dealt
    refusals = []
    for dealt in _dealings(folder, iterations):
        refusals.append(_again(directory, make, None, dealt, damage))
        if not refusals[-1]:
            path.unlink(missing_ok=True)
            return "", dealt
    return refusals[0], (iterations,)


def _again(
    directory: RunDirectory,
    make: Callable[[pathlib.Path, Sequence[int]], object],
    files: dict[str, str] | None,
    dealt: Sequence[int],
    damage: str,
) -> str:
    """Makes the data in a folder of its own, and takes from it what is lost.

    Args:
      directory: of the run.
      make: see `mend`.
      files: name → digest, as the manifest has them; None when it is lost: then those
        that are there must all be the same.
      dealt: see `mend`.
      damage: what is lost, in words.

    Returns:
      Why nothing was taken, or "".
    """
    folder = directory.path / "data"
    with tempfile.TemporaryDirectory(
        dir=directory.path, prefix=".data.", suffix=".tmp"
    ) as temporary:
        made = pathlib.Path(temporary) / "data"
        try:
            make(made.parent, dealt)
        except (OSError, ValueError) as error:
            return _refusal(f"{damage}, and it cannot be made again ({error})")
        names = [os.path.relpath(file, made) for file in _files(made.parent)]
        wanted = files if files is not None else _digests(folder, names)
        wrong = [n for n, digest in wanted.items() if _digest(folder / n) != digest]
        compared = wrong if files is not None else wanted  # those that are whole stay
        other = [n for n in compared if _digest(made / n) != wanted[n]]
        if other:
            place = os.path.normpath(folder / other[0])
            return _refusal(f"{damage}, and today's settings give another {place}")
        for name in wrong if files is not None else names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / name, folder / name)
    return ""


def _dealings(folder: pathlib.Path, iterations: int) -> Iterator[tuple[int, ...]]:
    """Yields the ways in which the questions that are there may have been dealt out.

    The run may have had all of its iterations from the start, or some of them later.
    """
    found = len(list(folder.glob("questions_*.jsonl"))) or iterations
    for more in range(min(found, 4)):
        for before in itertools.combinations(range(1, found), more):
            yield *before, found


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digests(folder: pathlib.Path, names: list[str]) -> dict[str, str]:
    """Returns the digests of those files that are there."""
    found = {name: _digest(folder / name) for name in names}
    return {name: digest for name, digest in found.items() if digest}


def _digest(path: pathlib.Path) -> str:
    return manifests.file_digest(path) if path.is_file() else ""


def _refusal(text: str) -> str:
    return (
        f"{text}; expected the file as it was. Put it back, or use another --workdir "
        "for a new run."
    )
