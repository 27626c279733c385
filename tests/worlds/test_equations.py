"""Equations of word problems: what is due, and what is refused."""

from fractions import Fraction

import pytest

from stepjax.worlds import equations


def test_due_operations_by_hand():
    node, operations = equations.read_equation("- + 8 3 2")
    due = {move.operation[:3] for move in equations.moves(node)}
    assert due == {("+", 8, 3), ("-", 8, 2), ("-", 3, 2)}
    assert [o.value for o in operations] == [Fraction(11), Fraction(9)]
    # 8 - 3 has one order only, and a division by 0 is not due.
    assert [
        m.operation for m in equations.moves(equations.read_equation("- 8 3")[0])
    ] == [("-", 8, 3, 5)]
    zero = equations.read_equation("* / 0 4 5")[0]
    assert ("/", 4, 0) not in {move.operation[:3] for move in equations.moves(zero)}


@pytest.mark.parametrize(
    ("equation", "words"),
    [
        ("+ 8", "expected \\+ - \\* /"),
        ("8 3", "nothing after it"),
        ("", "expected \\+ - \\* /"),
        ("/ 8 - 3 3", "divides by 0"),
        ("+ " * 60 + "1 " * 61, "expected \\+ - \\* /"),
    ],
)
def test_a_bad_equation_is_refused(equation, words):
    with pytest.raises(ValueError, match=words):
        equations.read_equation(equation)
