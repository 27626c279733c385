"""Runs ``stepjax`` commands many times, each in its own process, with faults.

A server imports stepjax once, under the shim of `faults.c`, and forks a process for
each command before any JAX backend is there. So a command costs no imports, and with
the cache of JAX no compilations either.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import xla_flags

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "small_config.py"
# Not compared: what differs between two runs that nothing has disturbed (times), and
# a log for people.
_NOT_COMPARED = ("log.txt", ".lock", "tensorboard")
_VARYING = ("seconds", "compiled", "sha256", "config", "inputs")


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      status: its exit status; -9 when it was killed.
      text: what it printed on standard error.
      operations: changes of files, one "NUMBER KIND PATH" each, as far as logged.
      silent_seconds: from its last printed line to its end.
    """

    status: int
    text: str
    operations: list[str]
    silent_seconds: float


def compiled(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the shim as a shared library; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or sys.platform != "linux":
        return None
    target = folder / "faults.so"
    source = str(HERE / "faults.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(target), source, "-ldl"]
    subprocess.run(command, check=True)
    return target


class Server:
    """Forks commands; see `server`."""

    def __init__(self, process: subprocess.Popen, folder: pathlib.Path):
        self._process, self._folder = process, folder

    def run(
        self,
        arguments: Sequence[str],
        *,
        under: pathlib.Path | str = "",
        first: int = 0,
        last: int = 0,
        error: int = 0,
        user: int = 0,
        seconds: float = 900,
    ) -> Ended:
        """Runs a command to its end.

        Args:
          arguments: after ``stepjax``.
          under: operations in this folder are counted.
          first: number of the first operation that is hit, counted from 1; 0 for none.
          last: number of the last one; 0 for the first one only.
          error: an errno with which they fail; 0 for a kill.
          user: the id of the user who runs it; 0 for the same one.
          seconds: after which it is killed and counts as hanging.
        """
        order = {
            "arguments": list(map(str, arguments)),
            "arm": [str(under), first, max(first, last), error],
            "user": user,
        }
        for name in ("text", "operations"):
            (self._folder / name).write_bytes(b"")
            (self._folder / name).chmod(0o666)
        print(json.dumps(order), file=self._process.stdin, flush=True)
        pid = int(self._process.stdout.readline())
        began, size, printed = time.monotonic(), -1, time.monotonic()
        while True:
            if (found := (self._folder / "text").stat().st_size) != size:
                size, printed = found, time.monotonic()
            if _gone(pid):
                break
            if time.monotonic() - began > seconds:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{arguments} hangs: {self._text()}")
            time.sleep(0.05)
        silent = time.monotonic() - printed
        print("", file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        lines = (self._folder / "operations").read_text().splitlines()
        return Ended(status, self._text(), lines, silent)

    def _text(self) -> str:
        return (self._folder / "text").read_text("utf-8", "replace")


def _gone(pid: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@contextlib.contextmanager
def server(cache: pathlib.Path) -> Iterator[Server]:
    """Starts a server.

    Args:
      cache: folder for compiled programs, kept from one server to the next.
    """
    with tempfile.TemporaryDirectory(prefix="stepjax-faults-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        shim = compiled(folder)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags.QUICK,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "LD_PRELOAD": str(shim or ""),
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parents[0]}",
        }
        process = subprocess.Popen(
            [sys.executable, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            yield Server(process, folder)
        finally:
            process.stdin.close()
            process.wait()


def serve(folder: pathlib.Path) -> None:
    """Reads orders from standard input and forks a command for each."""
    import gc

    import transformers  # noqa: F401, is imported late otherwise
    from absl import flags  # noqa: F401

    from stepjax import iterate, main  # noqa: F401
    from stepjax.lm import export  # noqa: F401

    shim = ctypes.CDLL(None)
    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _be_command(order, folder, shim)
        print(pid, flush=True)
        sys.stdin.readline()  # the other side has seen it end
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _be_command(order: dict, folder: pathlib.Path, shim: ctypes.CDLL) -> None:
    from stepjax import main

    text = os.open(folder / "text", os.O_WRONLY | os.O_APPEND)
    log = os.open(folder / "operations", os.O_WRONLY | os.O_APPEND)
    os.dup2(text, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 0)
    sys.argv = ["stepjax", *order["arguments"]]
    if order["user"]:
        os.setgid(order["user"])
        os.setuid(order["user"])
    under, first, last, error = order["arm"]
    if under:
        arm = shim.faults_arm
        arm.argtypes = [ctypes.c_char_p, *[ctypes.c_long] * 2, *[ctypes.c_int] * 2]
        arm(under.encode(), first, last, error, log)
    main.entry()


def results(folder: pathlib.Path) -> dict[str, str]:
    """Returns path → digest of what a run has made, without times.

    Records are compared without the fields that hold a time, or a digest of one; arrays
    by the digests in the manifests, which were computed from the arrays in memory.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_dir() or set(inside.parts) & {*_NOT_COMPARED, "params"}:
            continue
        content = path.read_bytes()
        if path.suffix == ".json" and inside.parts[0] != "tokenizer":
            value = json.loads(content)
            kept = {k: v for k, v in value.items() if k not in _VARYING}
            content = json.dumps(kept, sort_keys=True).encode()
        found[str(inside)] = hashlib.sha256(content).hexdigest()
    return found


def differences(folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """Returns the files in which a run differs from a whole one; see `results`."""
    found, expected = results(folder), results(whole)
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


def left(folder: pathlib.Path) -> list[str]:
    """Returns the temporary files, locks and unfinished folders in a run directory."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    signs = ("tmp", ".partial", ".lock", ".part-", "/train", "/reference")
    return [name for name in names if any(sign in name for sign in signs)]


def run(server: Server, folder: pathlib.Path, command: str = "run", **faults) -> Ended:
    """Runs a command on the small run; see `Server.run` for the faults."""
    arguments = [command, f"--config={CONFIG}", f"--workdir={folder}"]
    return server.run(arguments, under=folder, **faults)


def unbroken(place: pathlib.Path, server: Server) -> tuple[pathlib.Path, list[str]]:
    """Returns an undisturbed run, which is kept, and the changes of files it made."""
    folder, operations = place / "unbroken", place / "operations.json"
    if not operations.exists():
        shutil.rmtree(folder, ignore_errors=True)
        ended = run(server, folder)
        assert ended.status == 0, ended.text
        operations.write_text(json.dumps(ended.operations))
    return folder, json.loads(operations.read_text())


if __name__ == "__main__":
    serve(pathlib.Path(sys.argv[1]))
