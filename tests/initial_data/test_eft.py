"""The EFT filter: prompts in both orders, verdicts, reasons, rated pairs."""

import pathlib
import re

import pytest

from stepjax import prompts, records
from stepjax.codec import Codec
from stepjax.initial_data import eft, teacher
from stepjax.initial_data.teacher_answers import Answer
from stepjax.prompts import Templates
from stepjax.records import Comparison, Preference
from stepjax.worlds import arithmetic, arithmetic_teacher

TEMPLATES = Templates()
PAIR = Preference(
    "p/2", "What is {a}?", ("Step 1: x",), "Step 2: good", "Step 2: bad\n\nstill bad"
)


def pairs(count):
    return [
        Preference(f"p{n}", "What?", (), f"Step 1: good {n}", f"Step 1: bad {n}")
        for n in range(count)
    ]


def keep(*texts, **options):
    """What the filter makes of as many pairs as there are two answers for."""
    answers = [Answer(text) if isinstance(text, str) else text for text in texts]
    return eft.keep(pairs(len(texts) // 2), answers, TEMPLATES, **options)


def only(reasons):
    """The reasons that occurred."""
    return {reason: count for reason, count in reasons.items() if count}


# Prompts.


def test_both_orders_are_asked_in_the_words_of_the_judge():
    first, second = eft.requests([PAIR], TEMPLATES)
    assert first.endswith(
        "[Start of question]\nWhat is {a}?\n[End of question]\n\n"
        "[Start of steps so far]\nStep 1: x\n[End of steps so far]\n\n"
        "[Start of candidate A]\nStep 2: good\n[End of candidate A]\n\n"
        "[Start of candidate B]\nStep 2: bad\n\nstill bad\n[End of candidate B]\n\n"
        "Judgment:\n"
    )
    assert first.startswith("You are an impartial judge")
    good, bad = "Step 2: good\n", "Step 2: bad\n\nstill bad\n"
    swapped = first.replace(good, "@").replace(bad, good).replace("@", bad)
    assert second == swapped != first


def test_the_prompt_is_what_the_models_judge_sees(codec: Codec):
    problem, steps = "8*7+4*4+2", ("Step 1: 8*7+4=0",)
    for a, b in (
        ("Step 2: 0*4+2=2; \\boxed{2}", "Step 2: 0*4+2=3"),
        ("Step 2: 0*4+2=3", "Step 2: 0*4+2=2; \\boxed{2}"),
    ):
        ids, response = codec.comparison(
            Comparison("c", problem, steps, a, b, "A", "so ")
        )
        text = eft.judge_prompt(codec.templates, problem, steps, a, b)
        assert codec.tokenizer.decode(ids) == text
        assert codec.tokenizer.decode(codec.strip(response)) == "so [[A]]"


def test_no_pairs():
    assert eft.requests([], TEMPLATES) == []
    kept = eft.keep([], [], TEMPLATES)
    assert kept.rows == kept.dropped == [] and sum(kept.reasons.values()) == 0


# The filter.


def test_a_pair_is_kept_in_both_orders_with_the_teachers_explanations():
    answers = [Answer("A adds.\nB does not.\n[[A]]"), Answer("B adds. [[B]] Thanks!")]
    rows, reasons, dropped = eft.keep([PAIR], answers, TEMPLATES)
    start = "What is {a}?", ("Step 1: x",)
    good, bad = PAIR.chosen, PAIR.rejected
    assert rows == [
        Comparison("p/2-ab", *start, good, bad, "A", "A adds.\nB does not.\n"),
        Comparison("p/2-ba", *start, bad, good, "B", "B adds. "),
    ]
    for row, answer in zip(rows, answers, strict=True):
        said = row.explanation + prompts.verdict(TEMPLATES, row.verdict)
        assert answer.text.startswith(said)
    assert only(reasons) == {"kept": 1} and dropped == []


CUT = Answer("A is better. [[A]] and", False)
REASONS = {
    "kept": ("x [[A]]", "y [[B]]"),
    "answer cut off": (CUT, "y [[B]]"),
    "no verdict": ("x [[A]]", "A is [A] or [[C]] or [[a]]"),
    "two different verdicts in one answer": ("x [[A]]", "[[A]]? No: [[B]]"),
    "verdicts contradict each other": ("x [[A]]", "y [[A]]"),
    "teacher disagrees with the PRM": ("x [[B]]", "y [[A]]"),
    "empty explanation": ("x [[A]]", "\n [[B]]"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_every_pair_has_one_reason(reason):
    rows, reasons, dropped = keep(*REASONS[reason])
    assert only(reasons) == {reason: 1}
    assert len(rows) == 2 * (reason == "kept")
    texts = [getattr(answer, "text", answer) for answer in REASONS[reason]]
    expected = [{"id": "p0", "reason": reason, "answers": texts}]
    assert dropped == ([] if reason == "kept" else expected)


def test_reasons_add_up_to_the_pairs_and_are_all_in_the_table():
    texts = [answer for both in REASONS.values() for answer in both]
    rows, reasons, dropped = keep(*texts, *REASONS["kept"])
    assert [row.id for row in rows] == ["p0-ab", "p0-ba", "p7-ab", "p7-ba"]
    assert [row["id"] for row in dropped] == [f"p{n}" for n in range(1, 7)]
    assert only(reasons) == dict.fromkeys(REASONS, 1) | {"kept": 2}
    assert sum(reasons.values()) == 8
    lines = eft.table(reasons).splitlines()
    for reason in REASONS:
        (line,) = [line for line in lines if f" {reason} " in line]
        count = reasons[reason]
        assert line.split("│")[2:4] == [f" {count:>6} ", f" {100 * count / 8:5.1f} % "]
    (line,) = [line for line in lines if " all " in line]
    assert line.split() == ["│", "all", "│", "8", "│", "100.0", "%", "│"]


def test_the_data_page_explains_every_line_of_the_table():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "initial_data.md").read_text(
        "utf-8"
    )
    reasons = keep(undecided_margin=0.1, margins=[]).reasons
    lines = re.findall(
        r"^\| ([a-zA-Z ,]+) \|", page.partition("**What is kept.")[2], re.M
    )
    assert sorted(lines) == sorted(["line", *reasons])


def test_a_table_of_no_pairs():
    assert "│ all " in eft.table({"kept": 0})


def test_the_same_step_twice_is_no_pair():
    pair = Preference("p", "What?", (), "Step 1: x", "Step 1: x")
    rows, reasons, dropped = eft.keep(
        [pair], [Answer("x [[A]]"), Answer("x [[A]]")], TEMPLATES
    )
    assert only(reasons) == {"both steps are the same": 1} and rows == []
    assert len(dropped) == 1


def test_a_repeated_verdict_ends_the_explanation_where_the_models_judge_stops():
    rows, _, _ = keep("A. [[A]]\nFinal: [[A]]", " \n\u2028B. [[B]]")
    assert [row.explanation for row in rows] == ["A. ", "B. "]


def test_emphasis_around_a_verdict_is_not_explained():
    rows, _, _ = keep("A adds. **[[A]]**", "B adds.\n`[[ B ]]`")
    assert [row.explanation for row in rows] == ["A adds. ", "B adds.\n"]


def test_a_verdict_that_is_only_mentioned_is_none():
    assert only(keep("Write [[A]] if A adds.", "y [[B]]").reasons) == {"no verdict": 1}


def test_white_space_alone_is_no_explanation():
    rows, reasons, _ = keep("\n[[A]]", "y [[B]]", "x [[A]]", " \u2028[[B]]")
    assert rows == [] and only(reasons) == {"empty explanation": 2}


def test_explanations_may_be_missing_where_nobody_explains():
    assert only(keep("[[A]]", "[[B]]").reasons) == {eft.EMPTY: 1}
    kept = keep("[[A]]", "[[B]]", explained=False)
    assert [row.explanation for row in kept.rows] == ["", ""]


def test_other_verdicts_are_read_as_the_templates_say():
    templates = Templates(verdict="<better>{side}</better>")
    answers = [Answer("[[B]] x <better>A</better>"), Answer("y <better>B</better>")]
    kept = eft.keep(pairs(1), answers, templates)
    assert [row.explanation for row in kept.rows] == ["[[B]] x ", "y "]


def test_people_can_be_the_truth():
    _, reasons, _ = keep("x [[B]]", "y [[A]]", truth="the people")
    assert only(reasons) == {"teacher disagrees with the people": 1}


def test_undecided_pairs_are_kept_below_the_margin_only():
    both = ("x [[A]]", "y [[A]]")
    texts = [*both, *both, *both, "x [[B]]", "y [[B]]", "x [[A]]", "y [[B]]", *both[:1]]
    texts += ["y"]
    margins = [0.0, 0.09, 0.1, 0.0, 0.0, 0.0]
    rows, reasons, dropped = keep(*texts, undecided_margin=0.1, margins=margins)
    assert only(reasons) == {
        "kept": 1,
        "kept, undecided": 2,
        "no verdict": 1,
        "verdicts contradict each other": 2,
    }
    assert sum(reasons.values()) == 6
    assert [(row.id, row.verdict) for row in rows] == [
        ("p0-ab", "A"),
        ("p0-ba", "A"),
        ("p1-ab", "A"),
        ("p1-ba", "A"),
        ("p4-ab", "A"),
        ("p4-ba", "B"),
    ]
    assert [row.explanation for row in rows[:2]] == ["x ", "y "]
    assert [row["id"] for row in dropped] == ["p2", "p3", "p5"]
    # The paper keeps none; then the table does not name them.
    assert "kept, undecided" not in keep(*both).reasons
    assert keep(*both).rows == []


@pytest.mark.parametrize(
    "count, options, reason",
    [
        (3, {}, "3 answers for 2 pairs"),
        (4, {"undecided_margin": 0.1}, "with no margins for 2 pairs"),
        (4, {"undecided_margin": 0.1, "margins": [1.0]}, "with 1 margins for 2 pairs"),
    ],
)
def test_numbers_that_do_not_fit(count, options, reason):
    with pytest.raises(ValueError, match=reason):
        eft.keep(pairs(2), [Answer("x [[A]]")] * count, TEMPLATES, **options)


# Pairs that people rated.


@pytest.mark.parametrize(
    "explanation, first, second",
    [
        (
            "template",
            "Candidate A is right, and candidate B is wrong. ",
            "Candidate B is right, and candidate A is wrong. ",
        ),
        ("none", "", ""),
    ],
)
def test_rated_pairs_need_no_teacher(explanation, first, second):
    start = "What is {a}?", ("Step 1: x",)
    good, bad = PAIR.chosen, PAIR.rejected
    assert eft.rated([PAIR], explanation) == [
        Comparison("p/2-ab", *start, good, bad, "A", first),
        Comparison("p/2-ba", *start, bad, good, "B", second),
    ]


def test_rated_pairs_that_cannot_be_used():
    with pytest.raises(ValueError, match="explanation='teacher'; expected one of"):
        eft.rated([PAIR], "teacher")
    same = Preference("p9", "What?", (), "Step 1: x", "Step 1: x")
    with pytest.raises(ValueError, match="pair 'p9' holds the same step twice"):
        eft.rated([PAIR, same])


# The arithmetic world as a teacher.


def test_the_world_judges_its_pairs_through_a_replay_file(tmp_path, codec):
    templates, problem = arithmetic.templates(), "8*7+4*4+2"
    before = ("Step 1: 8*7+4=0",)
    right, wrong = "Step 2: 0*4+2=2; \\boxed{2}", "Step 2: 0*4+2=3; \\boxed{3}"
    other = "Step 2: 0*4+2=9; \\boxed{9}"
    asked = [
        Preference("agrees", problem, before, right, wrong),
        Preference("disagrees", problem, before, wrong, right),
        Preference("undecided", problem, before, wrong, other),
        Preference("over", problem, (*before, right), "Step 3: 1", "Step 3: 2"),
        Preference("same", problem, before, right, right),
    ]
    path = tmp_path / "answers.jsonl"
    records.write_jsonl(path, arithmetic_teacher.answers(asked, templates))
    answers = teacher.replay(path)(eft.requests(asked, templates))
    good, bad, worse = "0*4+2=2; \\boxed{2}", "0*4+2=3", "0*4+2=9"
    said = f"Check: 0*4=0, {good}, "
    assert answers[0].text == f"{said}{good} (+) {bad} (-) [[A]]"
    margins = [0.9, 0.9, 0.001, 0.9, 0.0]
    rows, reasons, dropped = eft.keep(
        asked, answers, templates, undecided_margin=0.01, margins=margins
    )
    assert [(row.id, row.verdict, row.explanation) for row in rows] == [
        ("agrees-ab", "A", f"{said}{good} (+) {bad} (-) "),
        ("agrees-ba", "B", f"{said}{bad} (-) {good} (+) "),
        ("undecided-ab", "A", f"{said}{bad} (-) {worse} (-) "),
        ("undecided-ba", "A", f"{said}{worse} (-) {bad} (-) "),
    ]
    assert [(row["id"], row["reason"]) for row in dropped] == [
        ("disagrees", "teacher disagrees with the PRM"),
        ("over", "no verdict"),
        ("same", "both steps are the same"),
    ]
    assert sum(reasons.values()) == 5
    for row in rows:  # what the model learns from them
        prompt, response = codec.comparison(row)
        assert codec.tokenizer.decode(response).startswith(row.explanation)
