"""Rows in our own form, as people write them: names, numbers, steps, tables."""

import json

import pytest
from data_rows import TEMPLATES

from stepjax.initial_data.formats import files, own, sources
from stepjax.prompts import Templates
from stepjax.records import Comparison, Preference, Problem, Question, Solution

STEPS = ["Step 1: 1+1=2", "Step 2: \\boxed{2}"]


def read(folder, rows, to, name="x.jsonl", texts=TEMPLATES, **options):
    path = folder / name
    if not isinstance(rows, str):
        rows = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(rows, encoding="utf-8")
    return sources.read(path, "jsonl", to, texts, **options)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"problem": "1+1?", "answer": "2"}, Problem("x-0", "1+1?", "2")),
        ({"question": "1+1?", "answer": 2}, Problem("x-0", "1+1?", "2")),
        ({"ID": 7, "Problem": "p", "Answer": 2.5}, Problem("7", "p", "2.5")),
        ({"unique_id": "u", "problem": "p", "answer": 3.0}, Problem("u", "p", "3")),
        ({"question": "q", "answer": "Two.\n#### 1,234"}, Problem("x-0", "q", "1234")),
        ({"problem": "p", "solution": "\\boxed{x}"}, Problem("x-0", "p", "x")),
        (
            {"problem": "p", "final_answer": ["$1$", "$2$"], "answer": None},
            Problem("x-0", "p", "$1$,$2$"),
        ),
        # Our own name comes before another one.
        ({"question": "q", "problem": "p", "answer": "a"}, Problem("x-0", "p", "a")),
    ],
)
def test_a_problem_in_the_words_of_public_benchmarks(tmp_path, row, expected):
    assert read(tmp_path, [row], "problem") == [expected]
    assert sources.read(tmp_path / "x.jsonl", "benchmark", "problem", TEMPLATES) == [
        expected
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"problem": "p"}, "no answer (the fields ['problem'] are there); expected"),
        ({"problem": "p", "solution": "a proof"}, "no answer (the fields"),
        ({"problem": "p", "answer": [2]}, "field 'answer' is [2]"),
        (
            {"problem": "p", "answer": True},
            "field 'answer' is True; expected the field 'answer' to hold a string or a",
        ),
        (
            {"problem": "p", "answer": None},
            "field 'answer' is empty (null, or an empty cell of a table); expected a "
            "string or a number.",
        ),
        ({"Question": None, "answer": 1}, "field 'Question' is empty (null, or an"),
        ({"problem": " ", "answer": 1}, "field 'problem' is ' '; expected some text"),
        ({"problem": 5, "answer": 1}, "field 'problem' is 5"),
    ],
)
def test_a_bad_problem_is_named_by_file_line_and_id(tmp_path, row, words):
    rows = [{"problem": "ok", "answer": 1}, {"id": "b7"} | row]
    with pytest.raises(ValueError) as caught:
        read(tmp_path, rows, "problem")
    place, _, reason = str(caught.value).partition(": ")
    assert place == f"{tmp_path / 'x.jsonl'}:2 (id b7)"
    assert words.replace("['problem']", "['id', 'problem']") in reason


def test_steps_are_numbered_and_the_answer_is_boxed(tmp_path):
    rows = [
        {"problem": "p", "steps": ["1+1=2", "so 2"], "answer": 2},
        {"problem": "p", "steps": STEPS},
        {"problem": "p", "steps": ["**Step 1: Add.**", "Step 2: \\boxed{2}"]},
    ]
    one, two, three = read(tmp_path, rows, "solution")
    last = "Step 2: so 2 The answer is \\boxed{2}."
    assert one == Solution("x-0", "p", ("Step 1: 1+1=2", last), "2")
    assert two == Solution("x-1", "p", tuple(STEPS), "2")
    assert three.steps == ("Step 1: **Add.**", "Step 2: \\boxed{2}")
    (other,) = read(tmp_path, rows[1:2], "solution", texts=Templates(step="<{n}> "))
    assert other.steps == ("<1> 1+1=2", "<2> \\boxed{2}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": ["Step 2: a \\boxed{1}"]}, "step 1 begins with 'Step 2: a"),
        ({"steps": ["Stage 1: a \\boxed{1}"]}, "or no marker at all"),
        ({"steps": ["a", "Step 1: b \\boxed{1}"]}, "step 2 begins with 'Step 1: b"),
        ({"steps": []}, "field 'steps' is []; expected one step at least"),
        ({"steps": ["a", " "]}, "step 2 is ' '; expected some text"),
        ({"steps": ["a", 7]}, "a step is 7; expected a string"),
        ({"steps": "a"}, "field 'steps' is 'a'"),
        ({"steps": ["a"]}, "no answer: the last step is 'Step 1: a'"),
        ({"solution": "\\boxed{1}"}, "The format 'math' cuts whole solutions"),
    ],
)
def test_a_bad_solution_is_named(tmp_path, changes, words):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, [{"id": "s", "problem": "p"} | changes], "solution")
    assert str(caught.value).startswith(f"{tmp_path / 'x.jsonl'}:1 (id s): ")
    assert words in str(caught.value)


EFT = {"id": "c", "problem": "p", "steps": ["a"], "a": "b", "b": "c", "verdict": "A"}


def test_a_comparison_without_markers(tmp_path):
    (row,) = read(tmp_path, [EFT | {"explanation": "\n\nBoth. [[A]]\n"}], "comparison")
    both = ("Step 2: b", "Step 2: c")
    assert row == Comparison("c", "p", ("Step 1: a",), *both, "A", "Both. ")
    (row,) = read(tmp_path, [EFT | {"explanation": "b is right"}], "comparison")
    assert row.explanation == "b is right\n"
    (row,) = read(tmp_path, [EFT | {"explanation": None, "steps": []}], "comparison")
    assert (row.a, row.explanation) == ("Step 1: b", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"b": "Step 7: z"}, "step 2 begins with 'Step 7: z'; expected 'Step 2: '"),
        ({"b": "b"}, "'a' and 'b' are the same step, 'Step 2: b'"),
        ({"b": "Step 2: b"}, "'a' and 'b' are the same step"),
        ({"verdict": "D"}, "field 'verdict' is 'D'; expected 'A' or 'B'"),
        ({"explanation": "[[B]] no, so [[A]]"}, "holds a verdict"),
        ({"b": ""}, "field 'b' is ''"),
    ],
)
def test_a_bad_comparison_is_named(tmp_path, changes, words):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, [EFT | changes], "comparison")
    assert str(caught.value).startswith(f"{tmp_path / 'x.jsonl'}:1 (id c): ")
    assert words in str(caught.value)


def test_preferences_and_step_labels_without_markers(tmp_path):
    rows = [{"problem": "p", "steps": [], "chosen": "b", "rejected": "c"}]
    (row,) = read(tmp_path, rows, "preference")
    assert row == Preference("x-0", "p", (), "Step 1: b", "Step 1: c")
    rows = [{"problem": "p", "steps": ["b", "c"], "labels": [True, 0.5]}]
    (row,) = read(tmp_path, rows, "labels")
    assert (row.steps, row.labels) == (("Step 1: b", "Step 2: c"), (1, 0.5))


def test_further_fields_are_said_once_and_refused_by_the_strict_reader(tmp_path):
    rows = [{"id": "a", "problem": "p", "level": 1}, {"id": "b", "problem": "q"}]
    said = []
    rejects = files.Rejects(collect=False, say=said.append)
    assert read(tmp_path, rows, "question", rejects=rejects) == [
        Question("a", "p"),
        Question("b", "q"),
    ]
    assert said == [f"{tmp_path / 'x.jsonl'}: these fields are not read: level"]
    with pytest.raises(ValueError, match=r":1 \(id a\): unknown field 'level'"):
        read(tmp_path, rows, "question", strict=True)
    with pytest.raises(ValueError, match="'steps': step 1 begins with '1'"):
        strict = {"id": "a", "problem": "p", "steps": ["1"], "answer": "1"}
        read(tmp_path, [strict], "solution", strict=True)
    # What the answer may be taken from counts as read.
    row = {"problem": "p", "solution": "\\boxed{1}", "Source": "s"}
    assert own.unread(row, Problem) == {"Source"}


# Tables.


def test_a_table_of_questions_and_answers(tmp_path):
    text = '\ufeffQuestion,answer,note\r\n"Two, or\n""three""?",7,x\r\n\r\nq,"1,5",\r\n'
    expected = [Problem("x-0", 'Two, or\n"three"?', "7"), Problem("x-1", "q", "1,5")]
    assert read(tmp_path, text, "problem", name="x.csv") == expected
    found = list(files.rows(tmp_path / "x.csv"))
    assert [(place.line, place.row) for place, _ in found] == [(2, 1), (5, 2)]
    assert found[1][1] == {"Question": "q", "answer": "1,5", "note": None}


def test_a_table_with_tabs_and_an_empty_cell_that_another_one_replaces(tmp_path):
    text = "problem\tquestion\tanswer\n\tq, or r\t7\n \np\t\t8\n"
    expected = [Problem("x-0", "q, or r", "7"), Problem("x-1", "p", "8")]
    assert read(tmp_path, text, "problem", name="x.tsv") == expected
    with pytest.raises(ValueError, match="have commas between them; expected tabs"):
        read(tmp_path, "question,answer\nq,1\n", "problem", name="x.tsv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("question,answer\nq\n", "x.csv:2 (row 1): 1 cells; expected 2, one per"),
        ("question,answer\nq,1,2\n", "3 cells; expected 2"),
        ("question,answer\nq,\n", "x.csv:2 (row 1): field 'answer' is empty (null, or"),
        ("question;answer\nq;1\n", "x.csv:1: the columns 'question;answer' have semi"),
        ("question\tanswer\nq\t1\n", "have tabs between them; expected commas"),
        ("question,question\nq,1\n", "expected a name for every column"),
        ('question,answer\nq,1\n"open,2\n', "x.csv:3: broken table"),
        ("question,answer\n", "x.csv: no rows; expected at least one"),
        ("", "x.csv: no rows"),
        ("q,a\nx,1\n", "missing field 'problem' (['a', 'q'] are there)"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, words):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text, "problem", name="x.csv")
    assert words in str(caught.value)


def test_a_table_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "x.csv").write_bytes("question,answer\nWie groß?,1\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"x\.csv:2: the text is not UTF-8 .*Save the"):
        sources.read(tmp_path / "x.csv", "jsonl", "problem", TEMPLATES)


def test_blank_lines_are_passed_over(tmp_path):
    row = '{"problem": "p", "answer": 1}\n'
    text = f"\n{row}\n \t\r\n{row} \n\n"
    assert [r.id for r in read(tmp_path, text, "problem")] == ["x-0", "x-1"]
    found = [place for place, _ in files.rows(tmp_path / "x.jsonl")]
    assert [(place.line, place.row) for place in found] == [(2, 1), (5, 2)]
    with pytest.raises(ValueError, match=r"x\.jsonl: no rows; expected at least one"):
        read(tmp_path, "\n \n", "problem")


def test_an_id_may_be_a_number_and_nothing_but_that_or_a_text(tmp_path):
    words = "'id' is False; expected the field 'id' to hold a string or a number"
    with pytest.raises(ValueError, match=words):
        read(tmp_path, [{"problem": "p", "answer": 1, "id": False}], "problem")
