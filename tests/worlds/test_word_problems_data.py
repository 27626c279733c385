"""Word problems: the splits of a run, near duplicates, equations by problem."""

import json
import random

import pytest
import tiny_word_config

from stepjax import records
from stepjax.prompts import Templates
from stepjax.records import Problem
from stepjax.worlds import equations
from stepjax.worlds import word_problems as world
from stepjax.worlds import word_problems_data as data
from stepjax.worlds.equations import Equation


def made(count=100):
    return [Equation(**row) for row in tiny_word_config.rows(count)]


def dataset(rows, test=(), **changes):
    lines = []
    counts = {"ift": 20, "eft": 10, "heldout": 6, "questions": (8, 9)} | changes
    return data.dataset(rows, test, seed=1, say=lines.append, **counts), lines


def renumbered(row, name, by=1):
    """The same problem with other numbers, spacing and capitals."""
    numbers = {str(n): str(n + by) for n in range(1, 11)}

    def changed(text):
        return " ".join(
            "".join(numbers.get(c, c) for c in w) if w.isdigit() else w
            for w in text.split()
        )

    equation = changed(row.equation)
    value = equations.read_equation(equation)[1][-1].value
    problem = changed(row.problem.upper()).replace(" ", "  ")
    return Equation(name, problem, str(value), equation)


def test_the_normal_form_forgets_numbers_case_and_blanks():
    assert data.without_numbers("Ann has  1,234.5 pens,\nand TWENTY-five cups.") == (
        "ann has # pens, and #-# cups."
    )
    assert data.without_numbers("Someone is often alone") == "someone is often alone"


def test_the_splits_have_their_sizes_and_share_no_problem():
    found, lines = dataset(made())
    assert [len(part) for part in found[:3]] == [20, 20, 12]
    assert list(map(len, found.questions)) == [8, 9] and not found.tree_questions
    parts = [found.ift, found.eft, found.heldout, *found.questions]
    problems = [{row.problem for row in part} for part in parts]
    assert sum(map(len, problems)) == len(set.union(*problems)) == 53
    assert {row.problem for row in found.equations} == set.union(*problems)
    assert "'ift': 20}, 47 left over" in lines[1]
    again, _ = dataset(made())
    assert again == found
    other = data.dataset(
        *(made(), ()),
        **{"seed": 2, "ift": 20, "eft": 10, "heldout": 6, "questions": (8, 9)},
        say=lines.append,
    )
    assert {row.problem for row in other.ift} != problems[0]


def test_all_that_is_left_is_ift_where_no_count_is_given():
    found, _ = dataset(made(), ift=0, eft=0, tree_questions=30)
    assert len(found.ift) == 100 - 6 - 8 - 9 - 30 and not found.eft
    assert len(found.tree_questions) == 30
    row = found.ift[0]
    (problem,) = [one for one in made() if one.id == row.id]
    for number, step in enumerate(row.steps):
        assert world.is_right(problem, row.steps[:number], step)


def test_problems_that_differ_only_in_numbers_stay_in_one_split():
    rows = made(60)
    rows += [renumbered(row, f"again-{row.id}", by) for row in rows for by in (1, 2)]
    found, lines = dataset(rows, ift=90, eft=12, heldout=9, questions=(12, 21))
    parts = [found.ift, found.eft, found.heldout, *found.questions]
    forms = [{data.without_numbers(row.problem) for row in part} for part in parts]
    assert [len(own) for own in forms] == [30, 4, 3, 4, 7]
    assert len(set.union(*forms)) == 48
    assert "180 that differ from another one only in numbers stay" in lines[0]


def test_near_duplicates_of_the_test_and_long_decimals_are_left_out():
    rows = made(60)
    test = [Problem("t", renumbered(rows[0], "x").problem, "1")]
    rows.append(Equation("odd", "How much?", "0.33333", "/ 1 3"))
    rows.append(Equation("less", "How many less?", "15", "- 12 - 3 6"))
    rows.append(rows[1])
    found, lines = dataset(rows, test, ift=0)
    assert rows[0].problem not in {row.problem for row in found.equations}
    assert len(found.ift) == 59 - 33
    assert "1 that differ from a test problem only in numbers, 2 with" in lines[0]
    assert "1 repeated" in lines[0]


def test_a_group_that_fits_nowhere_is_cut():
    row = made(1)[0]
    rows = [row] + [renumbered(row, f"n{n}", n) for n in range(1, 6)]
    assert len({one.problem for one in rows}) == 6
    found, lines = dataset(rows, ift=4, eft=0, heldout=0, questions=())
    assert len(found.ift) == 4 and "0 left over" in lines[1]


def test_too_few_problems_are_refused_with_all_counts():
    with pytest.raises(ValueError, match="'ift': 7}; expected .*'ift': 20"):
        dataset(made(40))
    with pytest.raises(ValueError, match="ift: at least 1"):
        dataset(made(33), ift=0)


def test_solutions_with_other_numbers_are_right_and_their_equations_are_known():
    plain, _ = dataset(made())
    found, lines = dataset(made(), ift_variants=2)
    assert found[1:5] == plain[1:5] and found.ift[:20] == plain.ift
    more = found.ift[20:]
    assert 20 < len(more) <= 40 and f" {len(more)} more solutions" in lines[2]
    assert len({row.problem for row in found.ift}) == len(found.ift)
    assert len({row.id for row in found.ift}) == len(found.ift)
    forms = {data.without_numbers(row.problem) for row in plain.ift}
    known = {row.problem: row for row in found.equations}
    for row in more:
        assert data.without_numbers(row.problem) in forms
        for number, step in enumerate(row.steps):
            assert world.is_right(known[row.problem], row.steps[:number], step)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_equations_are_read_with_their_place_in_errors(tmp_path):
    rows = tiny_word_config.rows(3)
    path = write(tmp_path / "p.jsonl", [row | {"source": "x"} for row in rows])
    assert data.read_equations(path) == [Equation(**row) for row in rows]
    rows[1]["equation"] = "+ 1 1"
    with pytest.raises(
        ValueError, match=r"p.jsonl:2 \(id made-1\): the equation '\+ 1 1' gives 2 "
    ):
        data.read_equations(write(path, rows))
    rows[1]["equation"] = 5
    with pytest.raises(
        ValueError, match=r"p.jsonl:2 \(id made-1\): field 'equation' is 5"
    ):
        data.read_equations(write(path, rows))


def test_the_equations_of_a_run_are_read_once_and_know_their_problems(tmp_path):
    rows = made(5)
    path = tmp_path / "equations.jsonl"
    records.write_jsonl(path, rows)
    known = data.Known(path, "short", Templates().step)
    row = rows[0]
    step = world.right_step(row, [], Templates().step)
    assert known.is_right(row.problem, [], step) is True
    path.unlink()  # it is not read again
    assert known.is_right(row.problem, [], "Step 1: 1 + 1 = 3.") is False
    assert known.is_right("Another problem?", [], step) is None
    assert known.mistake(row.problem, [], step) is None
    made_rows = known.comparisons("c", row.problem, random.Random(0), 0.0)
    assert [one.verdict for one in made_rows] == ["A", "B"]
    with pytest.raises(ValueError, match="cannot be read"):
        data.Known(tmp_path / "none.jsonl", "short", "").is_right("x", [], "y")
