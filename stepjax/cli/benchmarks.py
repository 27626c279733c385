"""The files that --benchmark names, looked for before anything takes time."""

import hashlib
import pathlib
from collections.abc import Sequence

from stepjax.initial_data.formats import files
from stepjax.lm import ordinary
from stepjax.run import paths as run_paths


def paths(named: Sequence[str]) -> list[str]:
    """Returns "test" and the paths of files, in the order in which they are named.

    Args:
      named: "test", files and folders. A folder means all files directly in it.

    Raises:
      ValueError: for what is not there or cannot be read, a folder without files of
        problems, and two files with the same content, which would be measured twice.
    """
    found: list[str] = []
    for name in named:
        expected, remedy = "a file or a folder", "Copy it here first."
        if address := run_paths.elsewhere("--benchmark", name, expected, remedy):
            raise ValueError(address)
        path = pathlib.Path(name)
        if name == "test" or path.is_file():  # a folder "test" is named "./test"
            found.append(name)
        elif name and path.is_dir():
            found += _within(path)
        else:
            raise ValueError(
                f"--benchmark={name}: no such file; expected 'test', files or folders "
                "of problems, with commas between them."
            )
    seen: dict[str, str] = {}
    for name in found:
        content = b"test" if name == "test" else _content(name)
        # Results are named by the first digits of this digest, see `stages.evaluate`.
        digest = hashlib.sha256(content).hexdigest()[:8]
        if digest in seen:
            raise ValueError(
                f"--benchmark: {seen[digest]} and {name} have the same content, and "
                "would be measured twice; expected every file once. Leave one of them "
                "out."
            )
        seen[digest] = name
    if not found:
        raise ValueError(
            "--benchmark names nothing; expected 'test', files or folders of problems."
        )
    return found


def _content(name: str) -> bytes:
    """Returns the bytes of a file."""
    ordinary.check(name)
    try:
        return pathlib.Path(name).read_bytes()
    except OSError as error:
        raise ValueError(
            f"--benchmark={name}: cannot be read ({error.strerror}); expected a file "
            "that this user can read. A link may lead to a file that is gone."
        ) from error


def _within(folder: pathlib.Path) -> list[str]:
    """Returns the files of problems that are in a folder, without those of folders."""
    known = (*files.SUFFIXES, *files.TABLES)
    found = [
        str(path)
        for path in sorted(folder.iterdir())
        if path.name[0] != "." and path.name.lower().endswith(known)
        if not path.is_dir()
    ]
    if not found:
        raise ValueError(
            f"--benchmark={folder}: there are no files of problems in this folder; "
            f"expected files that end with {', '.join(known)}."
        )
    return found
