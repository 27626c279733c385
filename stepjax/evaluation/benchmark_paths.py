"""The files that --benchmark and `eval.benchmarks` name, looked for at once."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

from stepjax.initial_data.formats import files, tfds_files
from stepjax.lm import ordinary
from stepjax.run import paths as run_paths


def paths(named: Sequence[str], option: str = "--benchmark") -> list[str]:
    """Returns "test" and the paths of files, in the order in which they are named.

    Args:
      named: "test", files, folders, and addresses of TFDS ("tfds:..."), which are
        looked for when they are read. A folder means all files directly in it.
      option: the option or the setting that names them, for messages.

    Raises:
      ValueError: for what is not there or cannot be read, a folder without files of
        problems, and two files with the same content, which would be measured twice.
    """
    found: list[str] = []
    for name in named:
        expected, remedy = "a file or a folder", "Copy it here first."
        if address := run_paths.elsewhere(option, name, expected, remedy):
            raise ValueError(address)
        path = pathlib.Path(name)
        if name.startswith(tfds_files.PREFIX):
            tfds_files.parse(name)
            found.append(name)
        elif name == "test" or path.is_file():  # a folder "test" is named "./test"
            found.append(name)
        elif name and path.is_dir():
            found += _within(path, option)
        else:
            raise ValueError(
                f"{option}={name}: no such file; expected 'test', files or folders "
                "of problems, with commas between them."
            )
    seen: dict[str, str] = {}
    for name in found:
        is_file = name != "test" and not name.startswith(tfds_files.PREFIX)
        content = _content(name, option) if is_file else name.encode()
        # Results are named by the first digits of this digest, see `stages.evaluate`.
        digest = hashlib.sha256(content).hexdigest()[:8]
        if digest in seen:
            raise ValueError(
                f"{option}: {seen[digest]} and {name} have the same content, and "
                "would be measured twice; expected every file once. Leave one of them "
                "out."
            )
        seen[digest] = name
    if not found and option == "--benchmark":
        raise ValueError(
            "--benchmark names nothing; expected 'test', files or folders of problems."
        )
    return found


def of_settings(named: Sequence[str]) -> list[str]:
    """Returns the files of `eval.benchmarks`, without "test", which is always measured.

    Raises:
      ValueError: see `paths`.
    """
    parts: list[str] = []
    for name in named:  # a text from the command line may hold several
        parts += [name] if os.path.exists(name) else name.split(",")
    found = paths(list(map(os.path.expanduser, parts)), "eval.benchmarks")
    return [name for name in found if name != "test"]


def _content(name: str, option: str) -> bytes:
    """Returns the bytes of a file."""
    ordinary.check(name)
    try:
        return pathlib.Path(name).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{option}={name}: cannot be read ({error.strerror}); expected a file "
            "that this user can read. A link may lead to a file that is gone."
        ) from error


def _within(folder: pathlib.Path, option: str) -> list[str]:
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
            f"{option}={folder}: there are no files of problems in this folder; "
            f"expected files that end with {', '.join(known)}."
        )
    return found
