"""Full, failing and read-only disks: a sentence, a quick end, and nothing is lost.

The slow tests mount small disks in memory (tmpfs), which takes root's rights.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import subprocess

import commands
import pytest
import runs
from commands import run

from stepjax import os_errors

SECONDS = 5  # from the last line to the end of a command that failed
# Sizes of a disk; it is made larger each time that a command has failed.
SIZES = (
    ("16k", "64k", "128k", "192k", "256k"),
    ("40k", "96k", "160k", "224k", "304k"),
)
INODES = (12, 24, 36, 48)
ERRORS = (errno.EIO, errno.ESTALE)
FAILING = (3, 35, 90, 130, 70)  # operations of one process after the other
ONCE = (50, 300, 900)
NOBODY = 65534


# Without a process of its own.


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ESTALE, 999])
def test_an_error_says_which_file_why_and_what_to_do(number):
    text = os_errors.sentence(OSError(number, os.strerror(number), "/disk/file"))
    assert text.startswith(f"/disk/file: {os.strerror(number)}. ")
    assert text.endswith(
        "run the same command again: nothing that was finished is lost."
    )


def test_an_error_is_found_behind_what_libraries_make_of_it():
    text = """RESOURCE_EXHAUSTED: Failed to open: "/d/x": no [os_error_code='28']"""
    inner = OSError(errno.EIO, "Input/output error", "/d/y")
    wrapped = RuntimeError("save failed")
    wrapped.__cause__ = ExceptionGroup("two", [KeyError("a"), inner])
    assert os_errors.find(wrapped) is inner
    found = os_errors.find(ValueError(text))
    assert (found.errno, found.filename) == (errno.ENOSPC, "/d/x")
    found = os_errors.find(Exception("No space left on device (os error 28)"))
    assert (found.errno, found.filename) == (errno.ENOSPC, None)
    assert os_errors.find(ValueError("no number in it")) is None


IN_THE_WAY = {  # name of a run directory that cannot be one → what is said of it
    "file/run": "Not a directory",
    "file": "is not empty and has no config.json",
    "link": "File exists",
    "circle": "File exists",
    "folder": "Is a directory",
    "n" * 300: "File name too long",
    "/proc/run": "No such file or directory",
}


@pytest.mark.parametrize("name", IN_THE_WAY, ids=lambda name: name[:6])
def test_what_is_in_the_way_of_a_run_directory_is_named(tmp_path, capsys, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    workdir, before = tmp_path / name, sorted(tmp_path.rglob("*"))
    status = runs.command("run", f"--config={runs.CONFIG}", f"--workdir={workdir}")
    last = capsys.readouterr().err.splitlines()[-1]
    assert status in (1, 2) and last.startswith(f"stepjax: {str(workdir)[:100]}"), last
    assert IN_THE_WAY[name] in last
    assert sorted(tmp_path.rglob("*")) == before


# Commands on small disks.


@contextlib.contextmanager
def disk(folder, *options):
    """Mounts a disk in memory; yields a function that mounts it with other options."""
    folder.mkdir(parents=True, exist_ok=True)

    def mount(*options):
        chosen = ",".join(("mode=777", *options))
        command = ["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        mount(*options)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount (root, and no sandbox that forbids it)")
    try:
        yield lambda *options: mount("remount", *options)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of the tests, which STEPJAX_FIGURES keeps."""
    kept = os.environ.get("STEPJAX_FIGURES")
    return pathlib.Path(kept) if kept else tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def server(place):
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler (cc) for faults.c")
    with commands.server(place / "compiled") as server:
        yield server


@pytest.fixture(scope="module")
def unbroken(place, server):
    """An undisturbed run, and the changes of files that it made."""
    return commands.unbroken(place, server)


def said(place, name, ended, *reasons):
    """Checks how a command failed, and keeps it for docs/reliability.md."""
    *_, last = ended.text.splitlines()
    kept = {"name": name, "seconds": round(ended.silent_seconds, 2), "said": last}
    with open(place / "disks.jsonl", "a") as file:
        file.write(json.dumps(kept) + "\n")
    assert ended.status == 1, ended.text
    assert "Traceback" not in ended.text, ended.text
    assert re.match(r"stepjax: /\S+: ", last) and any(r in last for r in reasons), last
    assert ended.silent_seconds < SECONDS


def finishes(server, folder, unbroken):
    ended = run(server, folder)
    assert ended.status == 0, ended.text
    assert commands.differences(folder, unbroken) == []
    assert commands.left(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: sizes[0])
def test_a_run_goes_on_after_its_disk_was_full(server, unbroken, place, sizes):
    folder = place / f"full_{sizes[0]}"
    with disk(folder, f"size={sizes[0]}") as remount:
        for size in sizes:
            remount(f"size={size}")
            said(place, f"full {size}", run(server, folder / "run"), "No space left")
        remount("size=64m")
        finishes(server, folder / "run", unbroken[0])


@pytest.mark.slow
def test_a_run_goes_on_after_its_disk_had_no_inodes(server, unbroken, place):
    folder = place / "inodes"
    with disk(folder, "size=64m", f"nr_inodes={INODES[0]}") as remount:
        for inodes in INODES:
            remount("size=64m", f"nr_inodes={inodes}")
            ended = run(server, folder / "run")
            said(place, f"inodes {inodes}", ended, "No space left")
        remount("size=64m", "nr_inodes=10000")
        finishes(server, folder / "run", unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_run_goes_on_after_its_disk_failed(server, unbroken, place, error):
    """From an operation on all of them fail, in one process after the other."""
    folder = place / f"failed_{error}"
    shutil.rmtree(folder, ignore_errors=True)
    for number in FAILING:
        ended = run(server, folder, first=number, last=10**9, error=error)
        name = f"{errno.errorcode[error]} from operation {number} on"
        said(place, name, ended, os.strerror(error))
    finishes(server, folder, unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", ONCE)
def test_a_run_goes_on_after_one_operation_failed(server, unbroken, place, number):
    folder = place / f"failed_once_{number}"
    shutil.rmtree(folder, ignore_errors=True)
    ended = run(server, folder, first=number, error=errno.EIO)
    if ended.status:  # a log that could not be written stops nothing
        said(place, f"EIO once, {number}", ended, os.strerror(errno.EIO))
    finishes(server, folder, unbroken[0])


@pytest.mark.slow
def test_a_run_goes_on_after_its_disk_was_read_only(server, unbroken, place):
    folder = place / "read_only"
    with disk(folder, "size=64m") as remount:
        remount("ro")
        ended = run(server, folder / "run")
        said(place, "read-only, new", ended, "Read-only file system")
        remount("rw")
        run(server, folder / "run", first=len(unbroken[1]) // 2)
        remount("ro")
        ended = run(server, folder / "run")
        said(place, "read-only, half", ended, "Read-only file system")
        remount("rw")
        finishes(server, folder / "run", unbroken[0])
        remount("ro")
        ended = run(server, folder / "run")
        said(place, "read-only, finished", ended, "Read-only file system")


@pytest.mark.slow
def test_a_run_goes_on_after_nobody_could_write_there(server, unbroken, place):
    folder = place / "forbidden"
    with disk(folder, "size=64m"):
        (folder / "theirs").mkdir(mode=0o755)
        ended = run(server, folder / "theirs" / "run", user=NOBODY)
        said(place, "no permission, new", ended, "Permission denied")
        run(server, folder / "run", first=len(unbroken[1]) // 2)
        ended = run(server, folder / "run", user=NOBODY)
        said(place, "no permission, half", ended, "Permission denied")
        finishes(server, folder / "run", unbroken[0])


@pytest.mark.slow
def test_an_export_to_where_nothing_can_be_written_is_a_sentence(
    server, unbroken, place, tmp_path
):
    whole, _ = unbroken
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "model", pathlib.Path("/proc/model")):
        arguments = ["export", f"--workdir={whole}", "--model=M1", f"--out={out}"]
        ended = server.run(arguments)
        *_, last = ended.text.splitlines()
        assert ended.status in (1, 2) and last.startswith("stepjax: "), ended.text
        assert "Traceback" not in ended.text and str(out.parent) in last
