"""Damage: every file of a run × five kinds of damage, then the same command again.

As a program it goes through all cases, or a sample, and adds a line of JSON for each to
FOLDER/cases.jsonl; cases that are there already are passed over:

    python tests/reliability/test_damage.py FOLDER [--most=20] [--seed=0] [--only=WORD]

The bases are a finished run and runs that were killed in SFT, in a search, in DPO and
in an evaluation. Each case works on a copy of one. The command runs in a forked child
of this process, which has imported stepjax and has started no device, and with a cache
of compiled programs, so that a case takes seconds.

What must never come out: "other" (exit 0 with other results), "traceback", "hang", and
"unnamed" (a message that does not name the damaged file or what it belongs to).
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import forked
import pytest

KINDS = ("flip", "zero", "half", "delete", "value")
BAD = {"other", "traceback", "hang", "unnamed"}
_PIECE = 4096  # bytes that "zero" overwrites
# Base → (command, what the killed run does not have, what it was killed after).
_STAGES = {
    "sft": (("sft",), ("M*", "eval/M[123]*"), ("save", "phase_1", 2)),
    "search": (
        ("search", "--model=M1"),
        ("M1/search*", "M1/pairs.jsonl", "M[23]", "eval/M[23]*"),
        ("add", "search.partial", 2),
    ),
    "dpo": (("dpo", "--model=M1"), ("M[23]", "eval/M[23]*"), ("save", "M2/train", 1)),
    "eval": (
        ("eval", "--model=M1", "--mode=greedy"),
        ("eval/M1_test_greedy*",),
        ("add", "M1_test_greedy", 2),
    ),
}


# Damage.


def harm(path: pathlib.Path, kind: str, rng: random.Random) -> bool:
    """Damages a file; returns whether that could be done."""
    data = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return True
    if kind == "flip" and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "zero" and data:
        at = rng.randrange(max(1, len(data) - _PIECE))
        data[at : at + _PIECE] = bytes(len(data[at : at + _PIECE]))
    elif kind == "half":
        del data[len(data) // 2 :]
    elif kind == "value":
        data = _other_value(data, rng)
    if data == path.read_bytes():
        return False
    path.write_bytes(data)
    return True


def _other_value(data: bytearray, rng: random.Random) -> bytearray:
    """Changes one digit so that the file stays JSON, or lines of JSON."""
    before = _values(data)
    digits = [at for at, byte in enumerate(data) if chr(byte).isdigit()]
    rng.shuffle(digits)
    for at in digits[:50] if before else ():
        changed = bytearray(data)
        changed[at] = ord(rng.choice([d for d in "123456789" if d != chr(data[at])]))
        if _values(changed) not in (None, before):
            return changed
    return data


def _values(data: bytes) -> list | None:
    """Returns what a file of JSON, or of lines of JSON, holds; None for other files."""
    for texts in ([data], data.splitlines()):
        with contextlib.suppress(ValueError):
            return [json.loads(text) for text in texts]
    return None


# Bases and cases.


class Bench:
    """A folder with the bases, and what was found in each case."""

    def __init__(self, folder, config, *, finished=None, quick=False):
        """Makes the bases that are not there yet."""
        self.folder, self.quick = folder.resolve(), quick
        self.config, self.kept = config, self.folder / "cases.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished = finished or self._made("finished", ("run",), None)

    def _made(self, name, command, stop):
        """Returns a base; it is made under another name and renamed."""
        base, part = self.folder / name, self.folder / f"{name}.part"
        if base.exists():
            return base
        if name in _STAGES:
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self.finished, part)
            for path in [p for own in _STAGES[name][1] for p in part.glob(own)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        status = self.run(command, part, stop)
        assert status == (9 if stop else 0), self.log.read_text()[-2000:]
        part.rename(base)
        return base

    @property
    def log(self):
        """What the last command printed."""
        return self.folder / "log.txt"

    def base(self, name):
        """Returns the folder of a base."""
        if name == "finished":
            return self.finished
        command, _, stop = _STAGES[name]
        return self._made(name, command, stop)

    def run(self, command, workdir, stop=None):
        """Runs a command on a run directory; returns its status."""
        words = [*command, f"--config={self.config}", f"--workdir={workdir}"]
        child = forked.start(words, self.log, quick=self.quick, stop=stop)
        return forked.wait(child)

    def cases(self, names) -> list[tuple[str, str, str]]:
        """Returns (base, file, kind of damage) of all cases."""
        whole = _files(self.finished)
        found = []
        for name in names:
            files = _files(self.base(name))
            if name != "finished":  # what only the unfinished run has, and its inputs
                inputs = {"config.json", "data/manifest.json", "M1/manifest.json"}
                inputs |= {"M1/pairs.jsonl", "M1/search.json"}
                files = [f for f in files if f not in whole or f in inputs]
            found += [(name, file, kind) for file in files for kind in KINDS]
        return found

    def done(self) -> dict[tuple[str, str, str], dict]:
        """Returns what was found in earlier cases."""
        lines = self.kept.read_text().splitlines() if self.kept.exists() else ()
        rows = map(json.loads, lines)
        return {(row["base"], row["file"], row["kind"]): row for row in rows}

    def case(self, base, file, kind) -> dict:
        """Damages a copy of a base, repeats its command, and says what came out."""
        copy = self.folder / "case"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.base(base), copy)
        row = {"base": base, "file": file, "kind": kind, "outcome": "not possible"}
        if harm(copy / file, kind, random.Random(f"{base} {file} {kind}")):
            began = time.monotonic()
            command = ("run",) if base == "finished" else _STAGES[base][0]
            status = self.run(command, copy)
            said = self.log.read_text(errors="replace")
            row |= {"status": status, "seconds": round(time.monotonic() - began, 1)}
            row["outcome"] = self._outcome(base, file, copy, status, said)
            row["said"] = _named(said, file)
        with open(self.kept, "a", encoding="utf-8") as kept:
            kept.write(json.dumps(row) + "\n")
        return row

    def _outcome(self, base, file, copy, status, said):
        if status is None:
            return "hang"
        if "Traceback (most recent call last)" in said or status > 2 or status < 0:
            return "traceback"
        if status:
            return "named" if _named(said, file) else "unnamed"
        same = _results(copy, base) == _results(self.finished, base)
        return "same" if same else "other"


def _files(folder) -> list[str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in paths if path.name != ".lock"]


def _named(said, file) -> str:
    """Returns the first line that names a file, or the model or state it is part of."""
    parts = pathlib.Path(file).parts
    names = [file, "/".join(parts[:2]), *(["step_"] if "train" in parts else [])]
    words = (
        "damage",
        "gone",
        "missing",
        "changed",
        "broken",
        "cannot",
        "no such",
        "lost",
        "left",
    )
    for line in said.splitlines():
        if any(n in line for n in names) and any(word in line for word in words):
            return line[:300]
    return ""


def _results(folder, base) -> dict:
    """Returns the results of the command of a base: name → value or bytes."""
    found = {}
    patterns = {
        "sft": ["M1/manifest.json"],
        "search": ["M1/pairs.jsonl", "M1/search.jsonl"],
        "dpo": ["M2/manifest.json"],
        "eval": ["eval/M1_test_greedy.json"],
    }.get(base)
    patterns = patterns or ["M*/*", "eval/*", "data/*", "tokenizer/*", "config.json"]
    kept = ("arrays", "counts", "metrics", "items", "inputs", "files")
    for path in sorted({p for own in patterns for p in folder.glob(own)}):
        name = str(path.relative_to(folder))
        found[name] = path.read_bytes() if path.is_file() else "a folder"
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            value = json.loads(found[name])
            if "seconds" in value:  # a manifest
                found[name] = {key: value.get(key) for key in kept}
    return found


def main(words) -> int:
    """Goes through the cases and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--most", type=int, help="cases in this call")
    parser.add_argument("--seed", type=int, default=0, help="of their order")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--bases", default="finished," + ",".join(_STAGES))
    parser.add_argument("--finished", type=pathlib.Path, help="a finished run")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(words)
    forked.ready(options.folder / "compiled")
    import tiny_config

    bench = Bench(
        options.folder,
        tiny_config.__file__,
        finished=options.finished,
        quick=options.quick,
    )
    every = bench.cases(options.bases.split(","))
    random.Random(options.seed).shuffle(every)
    chosen = [case for case in every if options.only in " ".join(case)]
    left = [case for case in chosen if case not in bench.done()]
    for number, case in enumerate(left[: options.most], 1):
        row = bench.case(*case)
        print(f"{number}: {' '.join(case)}: {row['outcome']} {row.get('said', '')}")
        sys.stdout.flush()
    rows = bench.done().values()
    table = collections.Counter((row["base"], row["outcome"]) for row in rows)
    for (base, outcome), count in sorted(table.items()):
        print(f"{base:10} {outcome:14} {count}")
    print(f"{sum(case in bench.done() for case in every)} of {len(every)} cases")
    return int(any(row["outcome"] in BAD for row in rows))


# Tests.


def program(*words):
    """Runs this file as a program; returns its status and what it printed."""
    found = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.returncode, found.stdout + found.stderr


def test_a_sample_of_damage_changes_no_result_in_silence(tmp_path):
    import runs

    how = ["--quick", f"--finished={runs.finished_run()}", "--bases=finished,search"]
    status, said = program(tmp_path, *how, "--most=5")
    assert status == 0, said
    rows = [json.loads(x) for x in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(rows) == 5, said


@pytest.mark.slow
def test_no_damage_of_any_file_changes_a_result_in_silence(tmp_path):
    status, said = program(os.environ.get("STEPJAX_DAMAGE", tmp_path))
    assert status == 0, said


@pytest.mark.parametrize("kind", KINDS)
def test_the_harness_really_damages(tmp_path, kind):
    path, text = tmp_path / "file.jsonl", '{"value": 12}\n{"value": 345}\n'
    path.write_text(text)
    assert harm(path, kind, random.Random(0))
    after = path.read_bytes() if path.exists() else None
    assert after != text.encode() and (after is None) == (kind == "delete")
    if kind == "value":
        assert _values(after) not in (None, _values(text.encode()))
    if after is not None and kind != "half":
        assert len(after) == len(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
