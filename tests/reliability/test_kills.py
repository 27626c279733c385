"""SIGKILL at the N-th change of a file, in every phase; the same command finishes.

`pytest -m slow tests/reliability/test_kills.py` kills more than 200 times, in chains:
kill, the same command, kill again, and at last to the end. What is left at the end is
compared bitwise with a run that nothing disturbed. With STEPJAX_FIGURES=FOLDER the
undisturbed run, the compiled programs and the chains that are done are kept there, so
that a test that was stopped goes on.
"""

import json
import os
import pathlib
import random
import shutil

import commands
import pytest
from commands import run

if not shutil.which("cc"):
    pytest.skip("needs a C compiler (cc) for faults.c", allow_module_level=True)

FRESH = 30  # kills in a new directory
CHAINS = 3  # with kills at random operations, each to the end
CHAIN_KILLS = 34  # in one of them
PHASES = {  # name → what its first operation has in it
    "evaluation": " /eval/M1",
    "search": " /M1/search.partial",
    "dpo": " /M2/",
    "last": " /eval/M2",
}
PHASE_KILLS = 16  # in a chain that begins there


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of the tests, which STEPJAX_FIGURES keeps."""
    kept = os.environ.get("STEPJAX_FIGURES")
    return pathlib.Path(kept) if kept else tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def server(place):
    with commands.server(place / "compiled") as server:
        yield server


@pytest.fixture(scope="module")
def unbroken(place, server):
    """An undisturbed run, and the changes of files that it made."""
    return commands.unbroken(place, server)


def broken(server, folder, number, command="run"):
    """Kills a command at an operation; returns which, or None when it ended before."""
    ended = run(server, folder, command, first=number)
    assert ended.status in (-9, 0), (
        ended.text
    )  # no command refuses what a kill has left
    return ended.operations[-1] if ended.status == -9 else None


def assert_as_unbroken(folder, unbroken):
    assert commands.differences(folder, unbroken) == []
    assert commands.left(folder) == []


@pytest.mark.slow
def test_kills_in_the_preparation_and_in_a_training_need_no_repair(server, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    ended = run(server, whole, "sft")
    assert ended.status == 0, ended.text
    inside = [line for line in ended.operations if "/M1/" in line]
    prepared = len(ended.operations) - len(inside)
    numbers = [
        1,
        4,
        prepared // 2,
        prepared - 3,
        prepared + 5,
        len(ended.operations) // 2,
    ]
    kills = [broken(server, folder, number, "sft") for number in numbers]
    assert None not in kills
    ended = run(server, folder, "sft")
    assert ended.status == 0, ended.text
    assert_as_unbroken(folder, whole)


@pytest.mark.slow
def test_a_kill_at_any_operation_of_a_new_directory_needs_no_repair(
    server, unbroken, place
):
    whole, operations = unbroken
    prepared = next(n for n, line in enumerate(operations) if " /eval" in line)
    prepared_files = {
        name: digest
        for name, digest in commands.results(whole).items()
        if name.split("/")[0] in ("config.json", "data", "tokenizer")
    }
    folder = place / "fresh"
    for number in sorted({1 + n * prepared // FRESH for n in range(FRESH)}):
        path = place / f"fresh_{number}.json"
        if path.exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        # The second kill is after the preparation.
        kills = [broken(server, folder, n) for n in (number, prepared + 20)]
        assert None not in kills
        made = commands.results(folder)
        assert {n: made.get(n) for n in prepared_files} == prepared_files
        path.write_text(json.dumps(kills))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(CHAINS))
def test_a_chain_of_kills_ends_bitwise_as_an_unbroken_run(
    server, unbroken, place, seed
):
    """Most of these kills are in the preparation, evaluations of M0, and trainings."""
    whole, operations = unbroken
    draw = random.Random(seed)
    ranges = [
        (1, 60) if n % 3 else (40, len(operations) // 8) for n in range(CHAIN_KILLS)
    ]
    numbers = [draw.randint(*ends) for ends in ranges]
    assert_chain(server, place, f"chain_{seed}", numbers, whole)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_chain_that_begins_in_a_later_phase_ends_bitwise_as_an_unbroken_run(
    server, unbroken, place, phase
):
    whole, operations = unbroken
    begin = next(n for n, line in enumerate(operations, 1) if PHASES[phase] in line)
    draw = random.Random(begin)
    numbers = [begin, *[draw.randint(8, 70) for _ in range(PHASE_KILLS - 1)]]
    assert_chain(server, place, f"phase_{phase}", numbers, whole)


def assert_chain(server, place, name, numbers, whole):
    """Kills at these operations, each of another process, and then goes to the end."""
    path, folder = place / f"{name}.json", place / name
    kills = json.loads(path.read_text()) if path.exists() else []
    for number in numbers[len(kills) :]:
        kills.append(broken(server, folder, number))
        path.write_text(json.dumps(kills))
    if kills[-1] != "the end":
        ended = run(server, folder)
        assert ended.status == 0, ended.text
        path.write_text(json.dumps([*kills, "the end"]))
    assert_as_unbroken(folder, whole)
