import dataclasses
import os
import pathlib
import time

import pytest

from stepjax import prompts
from stepjax.prompts import JudgePieces, Templates

SMALL = Templates(solve="{problem}\n", judge="{problem}\n{steps}\n{a}\n(A)\n{b}\n(B)\n")
OTHER = Templates(
    solve="Q: {problem}\nA:\n",
    judge="Q: {problem} ({problem})\nSo far\n{steps}\nthen\n{a}\nor\n{b}\n",
    step="({n}) ",
    verdict="Winner: {side}.",
)
DEFAULT = Templates()
ALL = pytest.mark.parametrize(
    "t", [DEFAULT, SMALL, OTHER], ids=["default", "small", "other"]
)


def render(pieces, steps, a, b):
    text = pieces.head + "".join(step + "\n" for step in steps) + pieces.before_a
    return text + a + "\n" + pieces.between + b + "\n" + pieces.tail


@ALL
def test_templates_pass_their_check(t):
    prompts.check_templates(t)
    assert prompts.solve_prompt(t, "x").endswith("\n")


def test_defaults():
    assert DEFAULT == Templates(prompts.SOLVE, prompts.JUDGE)
    assert "[[A]]" in DEFAULT.judge and "[[B]]" in DEFAULT.judge
    assert r"\boxed{}" in DEFAULT.solve and "Step n: " in DEFAULT.solve


JUDGE_END = "{steps}\n{a}\n{b}\n"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"solve": "Solve it.\n"}, "'solve' has no {problem}"),
        ({"solve": "{problem}"}, "'solve' ends with '{problem}'"),
        ({"judge": JUDGE_END}, "'judge' has no {problem}"),
        ({"judge": "{problem}\n{steps}\n{a}\n{b}"}, "'judge' ends with"),
        ({"judge": "{problem}\n{a}\n{b}\n"}, "{steps} 0 times"),
        ({"judge": "{problem}\n{steps}\n{b}\n"}, "{a} 0 times"),
        ({"judge": "{problem}\n{steps}\n{a}\n"}, "{b} 0 times"),
        ({"judge": "{problem}\n{a}\n" + JUDGE_END}, "{a} 2 times"),
        ({"judge": "{problem}\n{steps}\nA: {a}\n{b}\n"}, "{a} 1 times, 0 of them"),
        ({"judge": "{problem}\n{steps}\n{a} \n{b}\n"}, "{a} 1 times, 0 of them"),
        ({"judge": "{problem}\n{steps}\n{a}\n{b}\r\n"}, "{b} 1 times, 0 of them"),
        ({"judge": "{problem}\n{steps}\n{b}\n{a}\n"}, "out of order"),
        ({"judge": JUDGE_END + "{problem}\n"}, "out of order"),
        ({"step": "Step: "}, "expected one {n}"),
        ({"step": "Step {n}: {n} "}, "expected one {n}"),
        ({"step": "\nStep {n}: "}, "no newline"),
        ({"step": "{n}. "}, "expected some text before {n}"),
        ({"step": "Step {n}"}, "no digit after {n}"),
        ({"step": "Step {n}0 "}, "no digit after {n}"),
        ({"verdict": "[[A]]"}, "expected one {side}"),
        ({"verdict": "{side}{side}"}, "expected one {side}"),
    ],
)
def test_broken_rules(change, reason):
    broken = dataclasses.replace(DEFAULT, **change)
    with pytest.raises(ValueError) as caught:
        prompts.check_templates(broken)
    assert reason in str(caught.value)
    assert "expected" in str(caught.value)
    if "judge" in change:
        with pytest.raises(ValueError):
            prompts.judge_pieces(broken, "1+1?")


def test_judge_pieces_exactly():
    assert prompts.judge_pieces(SMALL, "8*7+4") == JudgePieces(
        head="8*7+4\n", before_a="", between="(A)\n", tail="(B)\n"
    )
    assert prompts.judge_pieces(OTHER, "1?") == JudgePieces(
        head="Q: 1? (1?)\nSo far\n", before_a="then\n", between="or\n", tail=""
    )


@ALL
@pytest.mark.parametrize("steps", [[], ["Step 1: x=1", "Step 2: y\n= 2"]])
def test_pieces_make_up_the_prompt(t, steps):
    problem, a, b = "Sum of $x_{1}$?", "Step 3: {b} wins", "Step 3: other"
    whole = t.judge.replace("{problem}", problem).replace("{b}\n", "<B>\n")
    whole = whole.replace("{steps}\n", "".join(step + "\n" for step in steps))
    whole = whole.replace("{a}\n", a + "\n").replace("<B>\n", b + "\n")
    pieces = prompts.judge_pieces(t, problem)
    assert render(pieces, steps, a, b) == whole
    assert all(piece == "" or piece.endswith("\n") for piece in pieces)


@ALL
def test_problem_is_put_in_untouched(t):
    problem = r"Let {a} = {steps}, \frac{1}{2}, {problem} and {b}" + "\n{b}\n{n}"
    pieces = prompts.judge_pieces(t, problem)
    assert pieces.head.count(problem) == t.judge.count("{problem}")
    assert not any("{" in piece for piece in pieces[1:])
    assert prompts.solve_prompt(t, problem) == t.solve.replace("{problem}", problem)
    assert prompts.solve_prompt(t, problem).count(problem) == 1


def test_markers_and_stops():
    assert [prompts.marker(DEFAULT, n) for n in (1, 3, 12)] == [
        "Step 1: ",
        "Step 3: ",
        "Step 12: ",
    ]
    assert prompts.marker(OTHER, 2) == "(2) "
    assert prompts.step_stops(DEFAULT) == tuple(f"\nStep {n}" for n in range(1, 10))
    assert prompts.step_stops(OTHER) == tuple(f"\n({n}" for n in range(1, 10))
    with pytest.raises(ValueError, match="step number is 0"):
        prompts.marker(DEFAULT, 0)


@pytest.mark.parametrize(
    ("form", "text", "held"),
    [
        ("[[{side}]]", "Step 1: 3, so [[B]]", "[[B]]"),
        ("[[{side}]]", "Step 1: [[C]]", "[[C]]"),
        ("[[{side}]]", "Step 1: the matrix [[1, A]] and [B]", ""),
        ("Winner: {side}.", "Step 1: Winner: A.", "Winner: A."),
        ("Winner: {side}.", "Step 1: The winner is A.", ""),
        ("{side}", "Step 1: A is 3", ""),  # the letter alone says nothing
        ("{side}.", "Step 1: It passes through A.", ""),
    ],
)
def test_texts_that_hold_a_verdict(form, text, held):
    t = dataclasses.replace(DEFAULT, verdict=form)
    assert prompts.held_verdict(t, text) == held


@ALL
def test_every_marker_starts_with_a_stop(t):
    stops = prompts.step_stops(t)
    for n in range(1, 101):
        assert sum(("\n" + prompts.marker(t, n)).startswith(s) for s in stops) == 1


def test_split_steps():
    text = (
        "Step 1: Let x = 2.\nStep one is done.\n\nStep 2: So\n\n$$x^2 = 4$$\n"
        "Step 3: \\boxed{4}\n\n"
    )
    steps = prompts.split_steps(DEFAULT, text)
    assert steps == [
        "Step 1: Let x = 2.\nStep one is done.",
        "Step 2: So\n\n$$x^2 = 4$$",
        "Step 3: \\boxed{4}",
    ]
    assert prompts.split_steps(DEFAULT, "\n".join(steps)) == steps


@ALL
@pytest.mark.parametrize("count", [1, 9, 12])
def test_split_steps_undoes_joining(t, count):
    steps = [prompts.marker(t, n) + f"{n}\nor {n + 1}" for n in range(1, count + 1)]
    assert prompts.split_steps(t, "\n".join(steps)) == steps


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "'Step 1: '"),
        ("So x = 2.\nStep 1: x", "'Step 1: '"),
        ("\nStep 1: x", "'Step 1: '"),
        ("Step 2: x", "'Step 1: '"),
        ("Step 1: x\nStep 3: y", "'Step 2: '"),
        ("Step 1: x\nStep 1: y", "'Step 2: '"),
        ("Step 1: x\nStep 2 says y", "'Step 2: '"),
        ("Step 1: x\nStep 12: y", "'Step 2: '"),
        ("Step 1: x\nStep 2: \nStep 3: z", "'Step 2: '"),
    ],
)
def test_split_steps_refuses(text, expected):
    with pytest.raises(ValueError) as caught:
        prompts.split_steps(DEFAULT, text)
    assert expected in str(caught.value)


def test_check_steps_accepts():
    prompts.check_steps(DEFAULT, ())
    prompts.check_steps(DEFAULT, ["Step 1: x\nStep by step", "Step 2: y"])
    prompts.check_steps(OTHER, ["(1) x", "(2) y"])


@pytest.mark.parametrize(
    "steps, reason",
    [
        (["x = 1"], "begins with 'x = 1'; expected the marker 'Step 1: '"),
        (["Step 1: x", "Step 2 : y"], "'Step 2 : y'; expected the marker 'Step 2: '"),
        (["Step 1: x", "Step 3: y"], "'Step 3: y'; expected the marker 'Step 2: '"),
        (["Step 1: x", "(2) y"], "'(2) y'; expected the marker 'Step 2: '"),
        (["Step 1: "], "nothing after its marker 'Step 1: '"),
        (["Step 1: x", "Step 2:  \n"], "nothing after its marker 'Step 2: '"),
        (["Step 1: x\n"], "ends with a newline"),
        (["Step 1: x\nStep 2: y"], "a line that begins like another step"),
    ],
)
def test_check_steps_refuses(steps, reason):
    with pytest.raises(ValueError) as caught:
        prompts.check_steps(DEFAULT, steps)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", None),
        ("the answer is 7", None),
        (r"\boxed 7", None),
        (r"boxed{7}", None),
        (r"\boxed{7", None),
        (r"\boxed{7}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{ 7 }.", " 7 "),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{1\\2\\}", r"1\\2\\"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\boxed{3}", "3"),
        (r"\boxed{{3}, {4}}", "{3}, {4}"),
        (r"{ \boxed{5} } }", "5"),
        (r"} \boxed{6}", "6"),
        (r"\\boxed{8}", "8"),
        (r"x \\\boxed{9}", "9"),
        ("\\boxed{1\n2}", "1\n2"),
    ],
)
def test_boxed(text, expected):
    assert prompts.boxed(text) == expected


def test_boxed_takes_linear_time():
    text = r"\boxed{" * 50_000
    started = time.perf_counter()
    assert prompts.boxed(text) is None
    assert prompts.boxed(text + "7" + "}" * 50_000) == "7"
    assert time.perf_counter() - started < 5  # seconds; trying each start takes hours


@pytest.mark.parametrize(
    "t, text, expected",
    [
        (DEFAULT, "A is right. [[A]]", "A"),
        (DEFAULT, "[[B]]", "B"),
        (DEFAULT, "[[A]] no, [[B]] is better", "B"),
        (DEFAULT, "[[B]] or [[A]] or [[B]] or [[A]]...", None),
        (DEFAULT, "", None),
        (DEFAULT, "A is better", None),
        (DEFAULT, "[[C]] [A] [[a]] [[A] ]", None),
        (OTHER, "[[A]] Winner: B. Yes", "B"),
        (OTHER, "[[A]] Winner: B", None),
    ],
)
def test_parse_verdict(t, text, expected):
    assert prompts.parse_verdict(t, text) == expected


@ALL
def test_verdict_is_parsed_again(t):
    for side in ("A", "B"):
        assert prompts.parse_verdict(t, prompts.verdict(t, side)) == side
    assert prompts.verdict(DEFAULT, "B") == "[[B]]"
    with pytest.raises(ValueError, match="side is 'D'"):
        prompts.verdict(t, "D")


def test_a_tie_counts_only_where_it_is_allowed():
    text = "[[A]] is tempting, but [[C]]"
    assert prompts.parse_verdict(DEFAULT, text) == "A"
    assert prompts.parse_verdict(DEFAULT, text, prompts.SIDES) == "C"
    assert prompts.parse_verdict(DEFAULT, "[[C]]") is None
    last = prompts.JUDGE_OR_TIE.split("\n\n")[0].splitlines()[-1]
    assert last.endswith(
        "[[B]] if candidate B is better, [[C]] if neither is better than the other."
    )


@pytest.mark.skipif(
    "STEPJAX_DATA" not in os.environ,
    reason="STEPJAX_DATA is unset: no folder with eval/*.jsonl to read",
)
def test_real_problems_survive_rendering():
    from stepjax.initial_data.formats import sources

    folder = pathlib.Path(os.environ["STEPJAX_DATA"], "eval")
    problems = sources.read(folder, "benchmark", "problem", DEFAULT)
    assert len(problems) > 1000
    steps = ("Step 1: {a}", "Step 2: \\boxed{1}")
    empty = prompts.judge_pieces(DEFAULT, "")
    for item in problems:
        pieces = prompts.judge_pieces(DEFAULT, item.problem)
        assert pieces.head.count(item.problem) >= 1 and pieces[1:] == empty[1:]
        text = render(pieces, steps, "Step 3: x", "Step 3: y")
        fixed = len(render(empty, steps, "Step 3: x", "Step 3: y"))
        assert len(text) == fixed + len(item.problem)
