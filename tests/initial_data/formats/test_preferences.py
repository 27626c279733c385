"""Rows of TRL and Step-DPO, read and written."""

import json

import pytest

from stepjax import prompts, records
from stepjax.initial_data.formats import preferences, sources
from stepjax.prompts import Templates
from stepjax.records import Preference

TEMPLATES = Templates()
OWN = [
    Preference("a", "One\nand two?", (), "Step 1: a", "Step 1: b"),
    Preference(
        "b", "p", ("Step 1: x\n\\[y\\]", "Step 2: z"), "Step 3: a\nb", "Step 3: a"
    ),
    Preference(
        "c", "\n\nSolution:\nnone?", ("Step 1: \u2028",), "Step 2: 1", "Step 2: 2"
    ),
    Preference("d", "p", ("Step 1: a",) * 0, "Step 1: The sun.", "Step 1: The sun"),
]


def trl(row, templates=TEMPLATES):
    (made,) = preferences.trl(row, "x", templates)
    return made


def say(content, role="assistant"):
    return {"role": role, "content": content}


def as_read(row):
    return row.problem, row.steps, row.chosen, row.rejected


def test_trl_rows_are_read_as_they_were_written():
    for own in (OWN[0], OWN[1], OWN[3]):
        row = preferences.to_trl(own, TEMPLATES)
        assert list(row) == ["prompt", "chosen", "rejected"]
        assert as_read(trl(row)) == as_read(own)
        # Without the field "prompt": what both texts begin with.
        whole = {k: row["prompt"] + row[k] for k in ("chosen", "rejected")}
        assert as_read(trl(whole)) == as_read(own)


def test_a_problem_that_holds_words_of_the_template():
    text = prompts.solve_prompt(TEMPLATES, OWN[2].problem) + "Step 1: x\n"
    assert preferences.cut_prompt(TEMPLATES, text) == (OWN[2].problem, ("Step 1: x",))


@pytest.mark.parametrize("templates", [TEMPLATES, Templates(step="<{n}> ")])
def test_step_dpo_rows_are_read_as_they_were_written(templates):
    rows = [
        Preference("a", "p?", (), *(prompts.marker(templates, 1) + t for t in "ab")),
        Preference(
            "b",
            "p\nq?",
            tuple(prompts.marker(templates, n) + f"x\ny {n}" for n in (1, 2)),
            *(prompts.marker(templates, 3) + t for t in ("a", "b")),
        ),
    ]
    for own in rows:
        row = preferences.to_step_dpo(own, templates)
        (made,) = preferences.step_dpo(row, "x", templates)
        assert as_read(made) == as_read(own)
    assert row["initial_reason_steps"] == (
        "Let's think step by step.\nStep 1: x\ny 1\nStep 2: x\ny 2\nStep 3:"
    )
    assert (row["chosen"], row["prompt"]) == (" a", "p\nq?")


def test_a_step_that_a_reader_of_step_dpo_would_cut():
    row = Preference("a", "p", (), "<1> a\nStep 2: b", "<1> c")
    with pytest.raises(ValueError, match="preference 'a': step 1 holds a line"):
        preferences.to_step_dpo(row, Templates(step="<{n}> "))


@pytest.mark.parametrize(
    ("initial", "steps"),
    [
        ("", ()),
        ("Let's think step by step.\n", ()),
        ("Let's think step by step. \nStep 1:", ()),
        ("Let's think step by step. Step 1: a\nStep 2:", ("Step 1: a",)),
        (
            "Let's think step by step.\nStep 1: a\n\nStep 2: b\n",
            ("Step 1: a", "Step 2: b"),
        ),
        ("Step 1: a, as in Step 1: b\nStep 16:", ("Step 1: a, as in Step 1: b",)),
    ],
)
def test_steps_of_step_dpo(initial, steps):
    row = {"prompt": "p", "initial_reason_steps": initial, "answer": 7}
    row |= {"chosen": " a", "rejected": f"Step {len(steps) + 1}: b"}
    (made,) = preferences.step_dpo(row, "x", TEMPLATES)
    n = len(steps) + 1
    assert made == Preference("x", "p", steps, f"Step {n}: a", f"Step {n}: b")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"initial_reason_steps": None}, "field 'initial_reason_steps' is empty"),
        ({"initial_reason_steps": "First add.\nStep 2:"}, "is 'First add.'"),
        ({"initial_reason_steps": "Step 1:\nStep 2:"}, "step 1 is ''"),
        ({"chosen": ""}, "field 'chosen'"),
        ({"chosen": "b"}, "chosen and rejected are the same"),
        ({"prompt": " "}, "field 'prompt'"),
    ],
)
def test_step_dpo_rows_that_do_not_fit(changes, words):
    row = {"prompt": "p", "initial_reason_steps": "", "chosen": "a", "rejected": "b"}
    with pytest.raises(ValueError, match=words):
        preferences.step_dpo(row | changes, "x", TEMPLATES)


def test_trl_rows_of_other_programs():
    row = {"prompt": "The sky is\n", "chosen": " blue.", "rejected": " green."}
    made = Preference("x", "The sky is", (), "Step 1: blue.", "Step 1: green.")
    assert trl(row) == made
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert trl(row) == made
    row = {"chosen": "Q: a?\nA: in b", "rejected": "Q: a?\nA: in c"}
    made = Preference("x", "Q: a?", (), "Step 1: A: in b", "Step 1: A: in c")
    assert trl(row) == made


def test_trl_conversations():
    made = Preference("x", "a?", (), "Step 1: b", "Step 1: c")
    user, both = say("a?", "user"), {"chosen": [say("b")], "rejected": [say("c")]}
    assert trl({"prompt": [say("Be kind.", "system"), user]} | both) == made
    row = {"chosen": [user, say("b")], "rejected": [user, say("c")]}
    assert trl(row) == trl(row | {"prompt": None}) == made
    # The steps so far, in the user's prompt or in a message of their own.
    steps = ("Step 1: x", "Step 2: y")
    made = Preference("x", "a?", steps, "Step 3: b", "Step 3: c")
    asked = prompts.solve_prompt(TEMPLATES, "a?")
    lines = "".join(f"{step}\n" for step in steps)
    assert trl({"prompt": [say(asked + lines, "user")]} | both) == made
    assert trl({"prompt": [say(asked, "user"), say(lines)]} | both) == made


USER = say("a?", "user")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "chosen": "a"}, "missing field 'rejected'"),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, "field 'chosen' is"),
        ({"prompt": "p", "chosen": "a ", "rejected": "Step 1: a"}, "are the same"),
        ({"chosen": "a", "rejected": "b"}, "no prompt: chosen begins with 'a'"),
        ({"chosen": "p a", "rejected": "p a"}, "are the same"),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, "field 'prompt' is 5"),
        (
            {"prompt": "p", "chosen": [say("a")], "rejected": [say("b")]},
            "field 'prompt' is 'p'; expected a list of messages",
        ),
        (
            {"chosen": [say("a")], "rejected": [say("b")]},
            r"field 'prompt' is messages of \[\]",
        ),
        (
            {"prompt": [USER], "chosen": [say("a"), USER], "rejected": [say("b")]},
            r"field 'chosen' is messages of \['assistant', 'user'\]",
        ),
        (
            {
                "prompt": [USER, say("b"), USER],
                "chosen": [say("a")],
                "rejected": [say("c")],
            },
            r"messages of \['user', 'assistant', 'user'\]",
        ),
        (
            {
                "prompt": [USER, say("no step")],
                "chosen": [say("a")],
                "rejected": [say("c")],
            },
            "step 1 begins with 'no step'",
        ),
        (
            {
                "prompt": [{"role": "user"}],
                "chosen": [say("a")],
                "rejected": [say("b")],
            },
            "missing field 'content'",
        ),
    ],
)
def test_trl_rows_that_do_not_fit(row, words):
    with pytest.raises(ValueError, match=words):
        trl(row)


def test_files_of_trl_rows(tmp_path):
    rows = [preferences.to_trl(own, TEMPLATES) for own in OWN[:2]]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    made = sources.read(tmp_path / "x.json", "trl", "preference", TEMPLATES)
    assert [as_read(row) for row in made] == [as_read(own) for own in OWN[:2]]
    assert [row.id for row in made] == ["trl-x-0", "trl-x-1"]
    records.write_jsonl(tmp_path / "own.jsonl", made)
    again = sources.read(tmp_path / "own.jsonl", "jsonl", "preference", TEMPLATES)
    assert again == made


def test_an_empty_system_message_is_left_behind():
    row = {
        "prompt": [say("", "system"), say("p", "user")],
        "chosen": [say("a")],
        "rejected": [say("b")],
    }
    assert as_read(trl(row)) == ("p", (), "Step 1: a", "Step 1: b")


def test_steps_of_step_dpo_that_share_a_line_are_refused():
    row = {"prompt": "p", "chosen": " a", "rejected": " b"}
    for initial in ("Step 1: x Step 2: y Step 3:", "Step 1: x\nStep 2: y Step 3: "):
        with pytest.raises(ValueError, match="'Step 3:' in the line of the last one"):
            preferences.step_dpo(
                row | {"initial_reason_steps": initial}, "x", TEMPLATES
            )
