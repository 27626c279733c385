"""A second grader: it lists what it sees otherwise, and is killed when it hangs."""

import contextlib
import importlib.util
import sys

import pytest
from runs import CONFIG, command

from stepjax import records
from stepjax.evaluation import second_opinion
from stepjax.lm import files

# Says true when both texts are equal; hangs, ends, or prints without an end on request.
FAKE = """
import json, sys, time
print("true", flush=True)
for line in sys.stdin:
    gold, prediction = json.loads(line)
    if prediction == "hang":
        time.sleep(600)
    if prediction == "end":
        sys.exit(3)
    print(json.dumps(gold == prediction), flush=True)
"""
PROGRAM = (sys.executable, "-c", FAKE)


def item(answer, prediction, right=False, **more):
    row = {"id": f"{answer}-{prediction}", "answer": answer, "prediction": prediction}
    return row | {"right": right} | more


def test_a_process_that_hangs_or_ends_is_started_again():
    said = ["1", "hang", "2", "end", "end", "é"]
    items = [item(gold, text) for gold, text in zip("1111é", said, strict=False)]
    items.append(item("é", "é"))
    done = []
    found = second_opinion.opinions(
        items, seconds=2.0, program=PROGRAM, advance=lambda n, note: done.append(n)
    )
    assert found == [True, None, False, None, None, True]
    assert done == [1] * 6


def test_a_process_that_does_not_start_is_an_error():
    broken = (sys.executable, "-c", "raise ImportError")
    with pytest.raises(ValueError, match="ended, or said nothing in .* expected"):
        second_opinion.opinions([item("1", "1")], program=broken)


def test_disagreements_are_printed_and_kept(tmp_path, monkeypatch):
    items = [
        item("1", "1", right=True),
        item("2", "3", right=True, tolerance="1"),
        item("4", "4", right=False),
        item("5", None),  # no answer: there is nothing to compare
        item("6", "7"),
    ]
    path = tmp_path / "M1_test_greedy.json"
    files.write_json(path, {"items": items})
    opinions, said = second_opinion.opinions, []
    monkeypatch.setattr(
        second_opinion, "opinions", lambda *a, **k: opinions(*a, **k, program=PROGRAM)
    )

    @contextlib.contextmanager
    def progress(name, total, unit):
        assert (name, total, unit) == ("M1_test_greedy math-verify", 4, "answer")
        yield lambda done, note: None

    differ = second_opinion.report(path, said.append, progress)
    assert [(row["id"], row["right"], row["theirs"]) for row in differ] == [
        ("2-3", True, False),
        ("4-4", False, True),
    ]
    kept = records.read_objects(tmp_path / "M1_test_greedy_math-verify.jsonl")
    assert [row for _, row in kept] == differ and differ[0]["tolerance"] == "1"
    assert said[0].startswith(
        "M1_test_greedy: of 4 answers, math-verify agrees on 2, d"
    )
    assert said[1:] == [
        "  2-3: right here, wrong for math-verify: answer '3', gold '2' (tolerance 1)",
        "  4-4: wrong here, right for math-verify: answer '4', gold '4'",
    ]
    assert files.read_json(path) == {"items": items}


def test_math_verify_is_asked():
    pytest.importorskip("math_verify")
    items = [
        item("$\\frac{1}{2}$", "0.5"),
        item("5", "6"),
        item("$69$,$84$", "84,69"),
        item("5", "10^{10^{10}}"),  # which it does not finish
        item("(1,2)", "(1, 2)"),
    ]
    # The limit is for the one that has no end; a busy machine may need seconds.
    found = second_opinion.opinions(items, seconds=20.0)
    assert found == [True, False, True, None, True]


def test_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "math_verify" else find(name, *a),
    )
    arguments = f"--config={CONFIG}", f"--workdir={tmp_path}", "--second-opinion"
    assert command("eval", *arguments) == 2
    said = capsys.readouterr().err
    assert "--second-opinion needs the package math-verify" in said
    assert 'pip install -e ".[math-verify]"' in said


def test_the_command_asks_about_final_answers_only(tmp_path, capsys):
    pytest.importorskip("math_verify")
    arguments = f"--config={CONFIG}", f"--workdir={tmp_path}", "--second-opinion"
    assert command("eval", *arguments, "--mode=judge") == 2
    assert "--second-opinion with --mode=judge, which has no" in capsys.readouterr().err
