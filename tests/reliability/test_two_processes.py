"""Two and three commands on one run directory: one works, the others say which one.

As a program it starts commands on FOLDER/seed_0/self, at once or some seconds apart,
and prints a line of JSON: of each command its process number, status and last line.

    python tests/reliability/test_two_processes.py FOLDER run,eval,ablate [SECONDS]
"""

import json
import pathlib
import subprocess
import sys
import time

import forked
import pytest


def commands(folder):
    """Returns name → the words of a command that works in FOLDER/seed_0/self."""
    import tiny_config

    config, run = f"--config={tiny_config.__file__}", folder / "seed_0" / "self"
    return {
        "run": ("run", config, f"--workdir={run}"),
        "eval": ("eval", "--model=M1", "--mode=greedy", config, f"--workdir={run}"),
        "ablate": ("ablate", config, f"--workdir={folder}", "--seeds=0", "--arms=self"),
    }


def race(folder, names, apart, quick):
    """Starts the commands; returns for each what became of it."""
    children = []
    for place, name in enumerate(names):
        if place:
            time.sleep(apart)
        log = folder / f"log_{place}.txt"
        words = commands(folder)[name]
        children.append((name, forked.start(words, log, quick=quick), log))
    rows = []
    for name, child, log in children:
        status, text = forked.wait(child), log.read_text(errors="replace")
        last = text.rstrip().rpartition("\n")[2]
        broken = "Traceback (most recent call last)" in text
        rows.append([name, child, status, last, broken])
    return rows


def main(words) -> None:
    """Runs one race and prints what became of each command."""
    folder, apart = pathlib.Path(words[0]), float([*words, "0"][2])
    forked.ready(folder / "compiled")
    quick = "--quick" in words
    print(json.dumps(race(folder, words[1].split(","), apart, quick)))


# Tests.


def raced(tmp_path, names, apart, *without):
    """Races commands on a copy of the finished run; returns its folder and the rows."""
    import runs

    folder = tmp_path / "seed_0" / "self"
    runs.copy_files(runs.finished_run(), folder, *without)
    words = [tmp_path, names, apart, "--quick"]
    found = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return folder, json.loads(found.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0, 2.5], ids=["at_once", "apart"])
@pytest.mark.parametrize("names", ["run,run", "run,eval,ablate", "ablate,run,run"])
def test_one_command_works_and_the_other_ones_say_which(tmp_path, names, apart):
    import runs

    folder, rows = raced(tmp_path, names, apart, "M3", "eval/M3*")
    assert not any(broken for *_, broken in rows), rows
    workers = [row for row in rows if row[2] == 0]
    assert workers, rows
    for _, process, status, last, _ in rows:
        if status:
            assert status == 1 and "is in use by process " in last, rows
            holder = int(last.partition("process ")[2].partition(" ")[0])
            assert holder in [row[1] for row in rows] and holder != process, rows
    assert not list(folder.glob(".*"))
    if any(name != "eval" for name, *_ in workers):
        runs.assert_same_results(folder, runs.finished_run())


def test_two_commands_at_once(tmp_path):
    import runs

    folder, rows = raced(tmp_path, "run,run", 0, "eval/M3_test_greedy.json")
    assert sorted(row[2] for row in rows) == [0, 1], rows
    (winner,) = (row[1] for row in rows if row[2] == 0)
    (said,) = (row[3] for row in rows if row[2] == 1)
    assert said.startswith(f"stepjax: {folder} is in use by process {winner} on host")
    assert not list(folder.glob(".*"))
    runs.assert_same_results(folder, runs.finished_run())


if __name__ == "__main__":
    main(sys.argv[1:])
