"""The files that --benchmark names, looked for before anything takes time."""

import hashlib
import pathlib
from collections.abc import Sequence

from stepjax.initial_data.formats import files


def paths(named: Sequence[str]) -> list[str]:
    """Returns "test" and the paths of files, in the order in which they are named.

    Args:
      named: "test", files, and folders, which stand for the files in them.

    Raises:
      ValueError: for what is not there, a folder without files of problems, and two
        files with the same content, whose results would be one.
    """
    found: list[str] = []
    for name in named:
        path = pathlib.Path(name)
        if name and path.is_dir():
            found += _within(path)
        elif name == "test" or path.is_file():
            found.append(name)
        else:
            raise ValueError(
                f"--benchmark={name}: no such file; expected 'test', files or folders "
                "of problems, with commas between them."
            )
    seen: dict[str, str] = {}
    for name in found:
        content = b"test" if name == "test" else pathlib.Path(name).read_bytes()
        # Results are named by the first digits of this digest, see `stages.evaluate`.
        digest = hashlib.sha256(content).hexdigest()[:8]
        if digest in seen:
            raise ValueError(
                f"--benchmark: {seen[digest]} and {name} are the same problems, so "
                "their results would have the same name; expected every file once. "
                "Leave one of them out."
            )
        seen[digest] = name
    if not found:
        raise ValueError(
            "--benchmark names nothing; expected 'test', files or folders of problems."
        )
    return found


def _within(folder: pathlib.Path) -> list[str]:
    """Returns the files of problems that are in a folder, without those of folders."""
    known = (*files.SUFFIXES, *files.TABLES)
    found = [
        str(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name[0] != "." and path.name.lower().endswith(known)
    ]
    if not found:
        raise ValueError(
            f"--benchmark={folder}: there are no files of problems in this folder; "
            f"expected files that end with {', '.join(known)}."
        )
    return found
