"""Checks made before anything is compiled: initial data, mesh, splits, budgets."""

import dataclasses

import pytest
import tiny_eft_config
from runs import make_mesh
from tiny_config import changed

from stepjax.codec import Codec
from stepjax.initial_data import prm
from stepjax.lm import model as lm
from stepjax.lm import sharding
from stepjax.prompts import Templates
from stepjax.records import Problem, Question, Solution, StepLabels
from stepjax.run import checks
from stepjax.settings import from_config, model_config

PROBLEM = "8*7+4*4+2"
LABELLED = StepLabels("x", PROBLEM, ("Step 1: 8*7+4=0",), (1.0,))
FILES = {
    "ift": [PROBLEM] * 8,
    "tree_questions": [Question("short", "5*3+1"), Question("long", PROBLEM)],
    "labels": [LABELLED, dataclasses.replace(LABELLED, steps=("Step 1: no",))],
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prm.prompt": "Is it right?"}, "template 'prm.prompt' has no {problem}; exp"),
        (
            {"prm.prompt": "{problem}"},
            "template 'prm.prompt' ends with '{problem}'; ex",
        ),
        ({"teacher.backend": "http"}, "teacher.model is empty; expected the name"),
        (
            {"teacher.backend": "http", "teacher.model": "m"},
            "teacher.url=''; expected an address such as",
        ),
        ({"teacher.backend": "replay"}, "teacher.file is empty; expected the file of"),
        (
            {"teacher.backend": "replay", "teacher.file": "/none/such.jsonl"},
            "/none/such.jsonl",
        ),
        (
            {"teacher.backend": "local", "teacher.model": "hf:/none/such"},
            "/none/such/config.json",
        ),
        (
            {"teacher.backend": "local", "teacher.timeout": 0.0},
            "teacher.timeout=0.0; e",
        ),
        (
            {"prm.labels": "rollouts", "rollouts.problems": 5},
            "prm.heldout_count=6 with 5 problems whose steps rollouts label; expected",
        ),
    ],
)
def test_what_would_stop_a_run_while_it_makes_its_eft_rows(changes, words, codec):
    c = tiny_eft_config.changed(prm__heldout_count=6)
    checks.check_initial_data(from_config(c), codec, FILES)
    c.update_from_flattened_dict(changes)
    with pytest.raises(ValueError) as error:
        checks.check_initial_data(from_config(c), codec, FILES)
    assert words in str(error.value)


def test_problems_with_unknown_characters_are_counted_or_refused(codec):
    rows = [Question("a", "5*3+1"), Question("b", "5\u00d73"), Question("c", "\u00e95")]
    steps = Solution("s", "5*3+1", ("Step 1: 5*3+1=1\u00e9",), "1")
    assert checks.check_characters(codec, {"own": rows[:1], "none": []}) == []
    said = checks.check_characters(codec, {"x.csv": rows, "ift": [steps, rows[0]]})
    assert said == [
        "x.csv: 2 of 3 problems hold characters that the tokenizer does not know: "
        "'\u00d7\u00e9'. The first of these problems is 'b'. The model does not see "
        "these characters.",
        "ift: 1 of 2 problems hold characters that the tokenizer does not know: "
        "'\u00e9'. The first of these problems is 's'. The model does not see these "
        "characters.",
    ]
    with pytest.raises(ValueError) as error:
        checks.check_characters(codec, {"x.csv": rows[1:]})
    assert "x.csv: 2 of 2 problems hold characters that" in str(error.value)
    assert "is 'b'; expected problems that it can read. Use another" in str(error.value)


def test_budgets_of_the_prm_to_the_token(codec):
    c = tiny_eft_config.changed(search__max_step_tokens=5)
    c.prm.prompt = "Is each step of this right?\n{problem}\n"
    asked = len(prm.context(codec, prm.Solving(PROBLEM, ()), c.prm.prompt))
    assert asked > len(codec.solve_prompt(PROBLEM))
    c.search.context_tokens = asked + 5
    c.train.row_length = size = len(prm.tree(codec, LABELLED, c.prm.prompt).tokens)
    longer = dataclasses.replace(LABELLED, steps=("Step 1: 8*7+4=0, so 0",))
    files = FILES | {"labels": [longer, LABELLED]}  # one of them fits
    checks.check_initial_data(from_config(c), codec, files)
    c.search.context_tokens -= 1
    words = (
        f"'long': the PRM's prompt and one step .* need {asked + 5} tokens; expected"
    )
    with pytest.raises(ValueError, match=words):
        checks.check_initial_data(from_config(c), codec, files)
    c.search.context_tokens += 1
    c.train.row_length -= 1
    words = (
        f"all 2 rows of labelled steps have more than train.row_length={size - 1} tok"
    )
    with pytest.raises(ValueError, match=words):
        checks.check_initial_data(from_config(c), codec, files)
    c.prm.labels_count = 0
    with pytest.raises(ValueError, match="prm.labels_count=0 makes no step labels"):
        checks.check_initial_data(from_config(c), codec, files | {"labels": []})


def test_a_tokenizer_that_cannot_tell_the_labels_apart(codec, monkeypatch):
    c = tiny_eft_config.get_config()
    monkeypatch.setattr(codec, "line", lambda text: (7,))
    with pytest.raises(ValueError, match="writes '[+]' as .* Use another tokenizer"):
        checks.check_initial_data(from_config(c), codec, FILES)


def test_a_sliding_window_that_could_bind_is_refused(codec):
    c = changed(train__row_length=64)
    files = {"test": [Problem("a", PROBLEM, "74")]}
    prompt = len(codec.solve_prompt(PROBLEM))
    c.eval.max_tokens = 200
    # Two candidates of 12 tokens and a judgment of 32 come after 64 tokens of context.
    checks.check_window(from_config(c), codec, files, 0)
    checks.check_window(from_config(c), codec, files, prompt + 200)
    words = f"the longest prompt and eval.max_tokens: {prompt + 200} tokens; expected a"
    with pytest.raises(ValueError, match=words):
        checks.check_window(from_config(c), codec, files, prompt + 199)
    c.eval.max_tokens = 1
    checks.check_window(from_config(c), codec, files, 120)
    with pytest.raises(ValueError, match="and the judgment: 120 tokens; expected at m"):
        checks.check_window(from_config(c), codec, files, 119)
    c.search.max_step_tokens, c.search.redraw = 30, 0.01
    c.judge.by = "own_judge.py:judge"
    checks.check_window(from_config(c), codec, files, 93)
    with pytest.raises(ValueError, match="search.redraw, a candidate: 93 tokens; exp"):
        checks.check_window(from_config(c), codec, files, 92)
    c.search.redraw = 0.0
    checks.check_window(from_config(c), codec, files, 64)
    words = (
        "row_length: 64 tokens; search.context_tokens: 64 tokens; expected at most 63"
    )
    with pytest.raises(ValueError, match=words):
        checks.check_window(from_config(c), codec, files, 63)


def test_slots_and_parameters_divide_over_the_devices():
    c = changed()
    shape = model_config(from_config(c), 128)

    def check(shape, **mesh):
        trained = lm.Decoder(shape, make_mesh(**mesh))
        sampling = sharding.host_mesh(mesh.get("tensor", 1))
        checks.check_mesh(c.search.slots, trained, lm.Decoder(shape, sampling))

    check(shape)
    check(shape, data=4, fsdp=2)
    check(dataclasses.replace(shape, num_kv_heads=2), data=2, fsdp=2, tensor=2)
    with pytest.raises(ValueError, match="'kv_heads' of size 1 .* mesh.tensor=2"):
        check(shape, data=2, fsdp=2, tensor=2)
    c.search.slots = 12
    with pytest.raises(ValueError, match="slots=12; expected a multiple of the 8 data"):
        check(shape)
    # Four devices per problem leave two groups of devices.
    many = dataclasses.replace(shape, num_heads=4, num_kv_heads=4)
    check(many, data=2, tensor=4)


# Splits.


def test_a_problem_in_two_splits():
    def problem(name, text):
        return Problem(name, text, "1")

    shared = {"ift": [problem("a", "1+1")], "eft": [problem("b", "1+1")]}
    checks.check_disjoint(shared | {"test": [problem("c", "1+2")]})
    for name in ("heldout", "test", "questions_1"):
        with pytest.raises(ValueError) as error:
            checks.check_disjoint(shared | {name: [problem("c", "1+1")]})
        words = f"problem '1+1' is in M1 training and in {name}; expected every problem"
        assert words in str(error.value) and "Remove it" in str(error.value)


# Budgets.


def test_budgets_to_the_token(codec):
    files = {
        "test": [Problem("short", "5*3+1", "6"), Problem("long", "8*7+4*4+2", "2")]
    }
    solve = len(codec.solve_prompt("8*7+4*4+2"))
    judged = len(codec.judge_context("8*7+4*4+2", ()))
    assert solve > len(codec.solve_prompt("5*3+1")) and judged > 1
    c = changed(search__max_step_tokens=5, judge__max_tokens=1)
    c.search.context_tokens, c.judge.context_tokens = solve + 5, judged
    checks.check_budgets(from_config(c), codec, files)
    c.search.context_tokens -= 1
    with pytest.raises(ValueError) as error:
        checks.check_budgets(from_config(c), codec, files)
    assert str(error.value) == (
        f"test row 'long': its prompt and one step of search.max_step_tokens=5 need "
        f"{solve + 5} tokens; expected at most search.context_tokens={solve + 4}. "
        "Raise it or drop the problem."
    )
    c.search.context_tokens, c.judge.context_tokens = 99, judged - 1
    words = f"'long': the judge's prompt has {judged} tokens; expected at most"
    with pytest.raises(ValueError, match=words):
        checks.check_budgets(from_config(c), codec, files)
    c.judge.context_tokens, c.judge.max_tokens = 99, 0
    with pytest.raises(
        ValueError, match="judge.max_tokens=0; expected at least the 1 "
    ):
        checks.check_budgets(from_config(c), codec, files)
    c.judge.mode = "logprob"  # writes nothing
    checks.check_budgets(from_config(c), codec, files)


# Verdicts.


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("[[{side}]]", ""),
        ("{side}", ""),
        (" [[{side}]] ", ""),
        ("[[{side}]]\n", "ends with '[[A]]\\n' is read as '[[A]]'"),
        ("Verdict:\n{side}", "ends with 'Verdict:\\nA' is read as 'Verdict:\\nA'"),
        ("> {side}", "ends with '> A' is read as '> A'"),
        ("<think>{side}", "ends with '<think>A'"),
        ("\u3010{side}\u3011", "is read as 'A', in which no verdict is found"),
    ],
)
def test_a_form_of_verdicts_that_cannot_be_read_back_is_refused(form, said, codec):
    made = Codec(codec.tokenizer, dataclasses.replace(Templates(), verdict=form))
    if not said:
        checks.check_verdicts(from_config(changed()), made)
        return
    with pytest.raises(ValueError) as caught:
        checks.check_verdicts(from_config(changed()), made)
    assert said in str(caught.value)


def test_all_kinds_of_judgments_can_be_read_back(codec):
    for changes in ({"judge__kind": "ratings"}, {"judge__score": "pointwise"}):
        checks.check_verdicts(from_config(changed(**changes)), codec)


@pytest.mark.parametrize(
    ("changes", "prompt"),
    [
        ({"judge__by": "http"}, "prompts.judge"),
        ({"judge__by": "http", "judge__score": "pointwise"}, "prompts.single"),
        ({"data__make_eft": True, "teacher__backend": "local"}, "prompts.judge"),
        ({}, ""),  # the model learns the form from its EFT rows
    ],
)
def test_a_prompt_tells_a_model_that_did_not_learn_it_the_form(changes, prompt, codec):
    settings = from_config(changed(data__world="", **changes))
    checks.check_verdicts(settings, Codec(codec.tokenizer, Templates()))
    other = dataclasses.replace(Templates(), verdict="({side})")
    if not prompt:
        checks.check_verdicts(settings, Codec(codec.tokenizer, other))
        return
    with pytest.raises(
        ValueError, match="does not hold '\\(A\\)', so a model"
    ) as caught:
        checks.check_verdicts(settings, Codec(codec.tokenizer, other))
    assert str(caught.value).startswith(prompt)
