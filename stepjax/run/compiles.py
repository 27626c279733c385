"""Programs that XLA compiles: counted, and kept on the disk for later commands.

JAX's persistent compilation cache keeps compiled programs in a folder, under a key made
of the program, its options, the kind of device and the version of XLA. A program that
is read from there is the same, byte for byte, as the one that was written, and so are
its results. The key does not hold what the CPU of this machine can do, so that this is
in the name of the folder: code for one CPU may end a process on another.
"""

import hashlib
import os
import pathlib
import platform
import tempfile
import threading
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from stepjax.run import paths

AUTO = "auto"  # compile_cache: the user's cache folder
_COMPILED = "/jax/core/compile/backend_compile_duration"  # or read from the cache
_LOADED = "/jax/compilation_cache/cache_retrieval_time_sec"
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_CPU_LINES = ("vendor_id", "model name", "flags", "Features", "CPU part")


class Count(NamedTuple):
    """What was compiled.

    Attributes:
      programs: how many XLA has compiled.
      seconds: how long that took; tracing is not in it.
      loaded: how many more were read from the cache.
    """

    programs: int = 0
    seconds: float = 0.0
    loaded: int = 0

    def since(self, before: "Count") -> "Count":
        """Returns what came after an earlier count."""
        return Count(*(a - b for a, b in zip(self, before, strict=True)))


_total = Count()
_lock = threading.Lock()
_ours: str | None = None  # the folder that `use_cache` gave to JAX


def _listen(event: str, seconds: float, **_) -> None:
    global _total
    # A program that is read raises both events; the first one includes the second.
    change = {_COMPILED: (1, seconds, 0), _LOADED: (-1, -seconds, 1)}.get(event)
    if change:
        with _lock:
            _total = Count(*(a + b for a, b in zip(_total, change, strict=True)))


jax.monitoring.register_event_duration_secs_listener(_listen)


def count() -> Count:
    """Returns what this process has compiled since this file was imported."""
    return _total


def machine() -> str:
    """Returns a digest of what the processor of this machine is and can do."""
    parts = [platform.system(), platform.machine(), platform.processor()]
    # Some programs are divided among the cores when they are compiled.
    affinity = getattr(os, "sched_getaffinity", None)
    parts.append(str(len(affinity(0)) if affinity else os.cpu_count()))
    try:
        lines = _CPU_INFO.read_text("utf-8", "replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []  # not Linux
    parts += [line for line in lines if line.startswith(_CPU_LINES)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def folder(setting: str) -> pathlib.Path:
    """Returns where programs of this machine are kept.

    Args:
      setting: `compile_cache`: a folder, or "auto" for stepjax in the user's cache
        folder ($XDG_CACHE_HOME, or ~/.cache).
    """
    if setting == AUTO:
        cache = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(cache):  # as the standard of XDG says
            cache = os.path.expanduser("~/.cache")
        setting = os.path.join(cache, "stepjax")
    root = pathlib.Path(os.path.abspath(os.path.expanduser(setting)))
    return root / "compiled" / machine()


def use_cache(setting: str, say: Callable[[str], None]) -> None:
    """Lets JAX keep compiled programs, small ones too, as `compile_cache` says.

    A cache that was chosen in JAX's own ways (JAX_COMPILATION_CACHE_DIR, even when it
    is empty, or jax.config) is left as it is. Of several hosts the first one writes.

    Args:
      setting: "auto", a folder, or "" for no cache.
      say: is told in a sentence when that cannot be used; programs are then compiled
        as without a cache.
    """
    global _ours
    if jax.config.jax_compilation_cache_dir != _ours:
        return
    remedy = "Set JAX_COMPILATION_CACHE_DIR to it: JAX reads and writes buckets itself."
    if address := paths.elsewhere("compile_cache", setting, "a folder", remedy):
        say(address)
        setting = ""
    place = str(folder(setting)) if setting else None
    if place:
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            say(
                f"compile_cache: {place} cannot be written ({error.strerror}), so that "
                "every command compiles its programs anew. Name another folder, or "
                "set compile_cache='' for none."
            )
            place = None
    if place != _ours:
        _ours = place
        compilation_cache.reset_cache()  # or it would keep its folder
        jax.config.update("jax_compilation_cache_dir", place)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
