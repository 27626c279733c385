import errno
import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from stepjax import iterate
from stepjax.run import lock

HOLD = """import pathlib, sys, time
from stepjax.run import lock
lock.BEAT_SECONDS = 0.1
try:
    lock.take(pathlib.Path(sys.argv[1]))
except ValueError as error:
    print(error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


def other(folder):
    """Starts a process that locks the folder, and ends when its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=pathlib.Path(lock.__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def changed(folder, **values):
    """Leaves a lock as this process would make it, with some values changed."""
    text = json.dumps(lock._self() | values)
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text(text)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "run"
    lock.release(tmp_path / "run")


def test_the_second_process_is_told_who_holds_the_lock(folder):
    with other(folder) as first:
        assert first.stdout.readline() == "held\n"
        kept = (folder / ".lock").read_bytes()
        with pytest.raises(ValueError) as refused:
            lock.take(folder)
        since = json.loads(kept)["since"]
        assert str(refused.value) == (
            f"{folder} is in use by process {first.pid} on host {socket.gethostname()} "
            f"since {since}; expected one command at a time. Wait until it has ended, "
            f"or end it with `kill {first.pid}`; it saves its work."
        )
        assert lock.is_others(folder) and (folder / ".lock").read_bytes() == kept
        first.stdin.close()
        assert first.wait() == 0
    assert not list(folder.iterdir())  # it was released at the end
    lock.take(folder)
    lock.take(folder)  # this process holds it already
    assert not lock.is_others(folder)
    lock.release(folder)
    assert not list(folder.iterdir())


def test_of_several_that_find_the_lock_of_a_killed_process_one_takes_it(folder):
    with other(folder) as first:
        assert first.stdout.readline() == "held\n"
        first.send_signal(signal.SIGKILL)
    assert (folder / ".lock").exists()
    several = [other(folder) for _ in range(4)]
    said = [process.stdout.readline() for process in several]
    assert said.count("held\n") == 1
    (winner,) = (p for p, line in zip(several, said, strict=True) if line == "held\n")
    assert all(f"process {winner.pid} " in line for line in said if line != "held\n")
    for process in several:
        process.communicate()
    assert not list(folder.iterdir())


def test_a_command_killed_while_it_replaced_a_lock_stands_in_nobodys_way(folder):
    changed(folder, pid=2**22 + 1)
    kept = (folder / ".lock").read_bytes()
    claim = folder / f".lock.{hashlib.sha256(kept).hexdigest()[:16]}"
    claim.write_text(json.dumps(lock._self() | {"pid": 2**22 + 2}))
    (folder / ".lock.0123.tmp").touch()
    os.utime(folder / ".lock.0123.tmp", (1, 1))
    lock.take(folder)
    assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_command_that_replaces_a_lock_is_waited_for(folder):
    changed(folder, pid=2**22 + 1)
    kept = (folder / ".lock").read_bytes()
    claim = folder / f".lock.{hashlib.sha256(kept).hexdigest()[:16]}"
    claim.write_text(json.dumps(lock._self()))  # of a process that is there
    threading.Timer(0.3, claim.unlink).start()
    lock.take(folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_file_system_without_links_has_locks(folder, monkeypatch):
    def refuse(*paths):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    lock.take(folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    lock.release(folder)
    changed(folder, pid=2**22 + 1)
    lock.take(folder)
    assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", [-1, 0, 10**30])
def test_a_lock_with_a_number_of_no_process_is_not_believed(folder, number):
    changed(folder, pid=number)
    with pytest.raises(ValueError, match="cannot be read; expected the lock of"):
        lock.take(folder)


def test_a_lock_that_was_left_empty_is_stale_after_seconds(folder):
    folder.mkdir()
    (folder / ".lock").touch()
    with pytest.raises(ValueError, match="cannot be read; expected the lock of"):
        lock.take(folder)
    now = (folder / ".lock").stat().st_mtime
    os.utime(folder / ".lock", (now, now - 6))
    lock.take(folder)


def test_a_number_that_another_process_has_by_now_is_stale(folder):
    changed(folder, pid=os.getppid(), started="1")
    lock.take(folder)
    assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "far"}, {"processes": "pid:[1]"}, {"host": "far", "boot": "1"}],
    ids=str,
)
def test_another_hosts_lock_is_stale_without_a_sign_of_life(
    folder, elsewhere, monkeypatch
):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    changed(folder, pid=2**22 + 1, **elsewhere)
    with pytest.raises(ValueError) as refused:
        lock.take(folder)
    assert "Its last sign of life was 0 s ago; if it is gone for sure, delete" in str(
        refused.value
    )
    assert f"delete {folder / '.lock'}, or wait: after 180 s" in str(refused.value)
    now = (folder / ".lock").stat().st_mtime
    os.utime(folder / ".lock", (now, now - 170))
    assert lock.is_others(folder)
    os.utime(folder / ".lock", (now, now - 200))
    lock.take(folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_clock_that_jumped_makes_no_lock_stale(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 10)
    changed(folder, pid=2**22 + 1, host="far")
    os.utime(folder / ".lock", (1, 1))
    threading.Timer(0.5, os.utime, [folder / ".lock", (2, 2)]).start()
    with pytest.raises(ValueError, match=r"is in use by process \d+ on host far"):
        lock.take(folder)


def test_after_a_restart_of_the_machine_the_wait_for_a_sign_of_life_decides(
    folder, monkeypatch, capsys
):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    changed(folder, boot="before")  # the number is that of this process
    lock.take(folder)
    assert "which was silent; waiting 0.1 s for a sign of life" in (
        capsys.readouterr().err
    )
    assert json.loads((folder / ".lock").read_text())["boot"] != "before"


def test_a_holder_whose_lock_was_deleted_makes_it_again(folder, monkeypatch):
    lock.take(folder)
    path = folder / ".lock"
    kept = path.read_bytes()
    path.unlink()
    lock._held[path]._beat()
    assert path.read_bytes() == kept


def test_a_sign_of_life_that_is_due_at_the_end_leaves_no_lock(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    made, began, go_on = lock._made, threading.Event(), threading.Event()

    def slow(path, text):
        began.set()
        go_on.wait(10)
        return made(path, text)

    lock.take(folder)
    monkeypatch.setattr(lock, "_made", slow)
    (folder / ".lock").unlink()  # so that the next sign of life makes it again
    assert began.wait(10)
    release = threading.Thread(target=lock.release, args=(folder,))
    release.start()
    release.join(0.2)
    go_on.set()
    release.join(10)
    for thread in threading.enumerate():
        if thread.name == "stepjax-lock":
            thread.join(10)
    assert list(folder.glob(".lock*")) == []


def test_a_holder_whose_lock_is_anothers_ends(folder):
    with other(folder) as first:
        assert first.stdout.readline() == "held\n"
        changed(folder)
        os.replace(folder / ".lock", folder / ".lock.new")
        os.replace(folder / ".lock.new", folder / ".lock")
        assert first.wait(60) == 1
    assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()


def test_a_holder_gives_signs_of_life_and_never_takes_a_lock_back(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    lock.take(folder)
    path = folder / ".lock"
    os.utime(path, (1, 1))
    for _ in range(100):
        if path.stat().st_mtime > 1:
            break
        lock.time.sleep(0.05)
    assert path.stat().st_mtime > 1
    path.write_text("another's")
    lock.release(folder)
    assert path.read_text() == "another's"


def test_a_lock_that_was_cut_off_is_not_taken_for_stale(folder):
    folder.mkdir()
    (folder / ".lock").write_text('{"pid": ')
    with pytest.raises(ValueError, match="cannot be read; expected the lock of"):
        lock.take(folder)
    os.utime(folder / ".lock", (1, 1))
    lock.take(folder)


def test_a_run_in_the_home_folder_releases_its_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def opened(config, workdir, redo, **how):
        lock.take(tmp_path / "run")  # as `Run` does
        assert (tmp_path / "run" / ".lock").exists()

    monkeypatch.setattr(iterate, "Run", opened)
    monkeypatch.setattr(iterate, "_run", lambda run: "done")
    assert iterate.run(None, "~/run") == "done"
    assert not (tmp_path / "run" / ".lock").exists()
