"""``stepjax eval --second-opinion``: on which answers math-verify disagrees with us.

math-verify (Hugging Face) compares answers with sympy. It sees the answers that were
extracted, knows no tolerance and no unit, and changes no result: where the two graders
differ, a person looks. It can take any time or memory for one answer, so it works in a
process of its own, which is killed and started again when an answer takes too long.

This file is also the program of that process, and imports math-verify only there.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SECONDS = 5.0  # for one answer
_TO_START = 120.0  # seconds
_MEMORY = 4 * 2**30  # bytes of the process
_SHOWN = 20  # disagreements that are printed
_PROGRAM = (sys.executable, "-P", __file__)  # -P: files beside it are no libraries


def check() -> None:
    """Raises ValueError when math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            "--second-opinion needs the package math-verify, which is not installed; "
            'expected the extra `math-verify`: pip install -e ".[math-verify]".'
        )


def report_all(results: Sequence[pathlib.Path], monitor: Any) -> None:
    """Makes the report of each result that has final answers, on the first host.

    Args:
      results: files of evaluations.
      monitor: of the run.
    """
    from stepjax.lm import files, hosts

    for path in results if hosts.first() else ():
        if files.read_json(path)["stage"] in ("eval/greedy", "eval/search"):
            report(path, monitor.say, monitor.progress)


def report(
    result: pathlib.Path,
    say: Callable[[str], None],
    progress: Callable[..., contextlib.AbstractContextManager],
) -> list[dict[str, Any]]:
    """Asks math-verify about a result, prints where it disagrees, and keeps that.

    Args:
      result: file of an evaluation with the mode "greedy" or "search". Beside it, a
        file of JSON lines gets all items on which the two differ.
      say: takes sentences for people.
      progress: shows how far it is, see `Monitor.progress`.

    Returns:
      The items of that file: "id", "answer", "prediction", "right" (ours), "theirs".
    """
    from stepjax import records
    from stepjax.lm import files

    items = files.read_json(result)["items"]
    asked = [item for item in items if item["prediction"] is not None]
    with progress(f"{result.stem} math-verify", len(asked), "answer") as advance:
        theirs = opinions(asked, advance=advance)
    kept = ("id", "answer", "tolerance", "unit", "prediction", "right")
    differ = [
        {name: item[name] for name in kept if name in item} | {"theirs": opinion}
        for item, opinion in zip(asked, theirs, strict=True)
        if opinion is not None and opinion != item["right"]
    ]
    path = result.with_name(f"{result.stem}_math-verify.jsonl")
    records.write_jsonl(path, differ)
    unsure = theirs.count(None)
    say(
        f"{result.stem}: of {len(asked)} answers, math-verify agrees on "
        f"{len(asked) - len(differ) - unsure}, disagrees on {len(differ)}, and did not "
        f"finish {unsure} within {SECONDS:.0f} seconds each"
        f"{f'. Those on which it disagrees are in {path}' if differ else ''}"
    )
    for item in differ[:_SHOWN]:
        stated = ", ".join(
            f"{name} {item[name]}" for name in ("tolerance", "unit") if name in item
        )
        say(
            f"  {item['id']}: {_verdict(item['right'])} here, "
            f"{_verdict(item['theirs'])} for math-verify: answer "
            f"{item['prediction'][:80]!r}, gold {item['answer'][:80]!r}"
            f"{f' ({stated})' if stated else ''}"
        )
    return differ


def _verdict(right: bool) -> str:
    return "right" if right else "wrong"


def opinions(
    items: Iterable[dict[str, Any]],
    seconds: float = SECONDS,
    advance: Callable[[int, str], None] = lambda done, note: None,
    program: Sequence[str] = _PROGRAM,
) -> list[bool | None]:
    """Returns whether math-verify calls each answer right; None where it did not end.

    Args:
      items: each with "answer" and "prediction".
      seconds: for one answer; the process is killed then.
      advance: called with 1 and "" after each answer.
      program: the process that is asked.
    """
    found = []
    with contextlib.closing(_Asked(program)) as asked:
        for item in items:
            found.append(asked.ask(item["answer"], item["prediction"], seconds))
            advance(1, "")
    return found


class _Asked:
    """The process that is asked; it is started when it is needed."""

    def __init__(self, program: Sequence[str]):
        self._program = program
        self._process: subprocess.Popen | None = None

    def ask(self, gold: str, prediction: str, seconds: float) -> bool | None:
        process = self._process or self._start()
        try:
            process.stdin.write(json.dumps([gold, prediction]) + "\n")
            process.stdin.flush()
            answer = self._line(seconds)
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            return None
        return json.loads(answer)

    def _start(self) -> subprocess.Popen:
        self._process = subprocess.Popen(
            self._program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the command
        )
        if not self._line(_TO_START):
            self.close()
            raise ValueError(
                f"{' '.join(self._program)}: ended, or said nothing in "
                f"{_TO_START:.0f} seconds; expected math-verify to start. `python -c "
                "'import math_verify'` says why."
            )
        return self._process

    def _line(self, seconds: float) -> str:
        """Returns the next line of the process; "" if it ended or took too long."""
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else ""

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _work() -> None:
    """Answers questions, one line each, until there are no more."""
    import resource

    from math_verify import parse, verify

    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    print("true", file=out, flush=True)
    for line in sys.stdin:
        both = (
            parse(f"\\boxed{{{text.replace('$', '')}}}", parsing_timeout=None)
            for text in json.loads(line)
        )
        right = verify(*both, timeout_seconds=None)
        print(json.dumps(bool(right)), file=out, flush=True)


if __name__ == "__main__":
    _work()
