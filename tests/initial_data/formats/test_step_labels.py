"""ProcessBench, Math-Shepherd, TRL's stepwise supervision; texts of steps."""

import pytest

from stepjax import prompts
from stepjax.initial_data.formats import fields, step_labels
from stepjax.prompts import Templates
from stepjax.records import StepLabels

TEMPLATES = Templates()


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("Add.", "Step 3: Add."),
        (" \n Add.\n\nThen stop.\n", "Step 3: Add.\n\nThen stop."),
        ("Step 3: Add.", "Step 3: Add."),
        ("Step 3: Step 3: Add.", "Step 3: Step 3: Add."),
        ("step 7. Add.", "Step 3: Add."),
        ("Step 12) Add.", "Step 3: Add."),
        ("## Step 1: Add.", "Step 3: Add."),
        ("**Step 1: Add.**\nNow", "Step 3: **Add.**\nNow"),
        ("**Step 1:** Add.", "Step 3: Add."),
        ("Step 1: **Add.**", "Step 3: **Add.**"),
        ("Step 2 is easy.", "Step 3: Step 2 is easy."),
        ("Step 2.5 kilometres.", "Step 3: Step 2.5 kilometres."),
        ("Steps 1: and 2:", "Step 3: Steps 1: and 2:"),
        ("See\nStep 2: above", "Step 3: See Step 2: above"),
        ("See\n Step 2: above", "Step 3: See\n Step 2: above"),
        ("a\u2028Step 2: b", "Step 3: a\u2028Step 2: b"),
    ],
)
def test_texts_of_steps(text, step):
    assert fields.step(TEMPLATES, 3, text) == step
    prompts.check_steps(TEMPLATES, ("Step 1: a", "Step 2: b", step))


@pytest.mark.parametrize("text", ["", " \n", "Step 3:", "**Step 3:**", "## Step 1: "])
def test_steps_without_a_text(text):
    with pytest.raises(ValueError, match="step 3 is .*expected some text besides"):
        fields.step(TEMPLATES, 3, text)


def test_steps_with_another_marker():
    t = Templates(step="<{n}> ")
    assert fields.step(t, 2, "Step 4: a\n<1> b\nStep 2: c") == "<2> a <1> b\nStep 2: c"


def bench(label, steps=("a", "Step 2: b", "c")):
    row = {"problem": "p", "steps": list(steps), "label": label}
    row |= {"generator": "g", "final_answer_correct": True}
    return step_labels.processbench(row, "x", TEMPLATES)


@pytest.mark.parametrize(
    ("label", "labels"),
    [(-1, (1, 1, 1)), (0, (0, None, None)), (1, (1, 0, None)), (2, (1, 1, 0))],
)
def test_processbench(label, labels):
    (made,) = bench(label)
    steps = ("Step 1: a", "Step 2: b", "Step 3: c")
    assert made == StepLabels("x", "p", steps, labels)
    assert (labels.index(0) if 0 in labels else -1) == label


@pytest.mark.parametrize("label", [3, -2, None, "1", True, 1.0])
def test_processbench_with_a_wrong_label(label):
    with pytest.raises(ValueError, match="field 'label' is .* for 3 steps; expected"):
        bench(label)


def test_processbench_with_wrong_steps():
    with pytest.raises(ValueError, match="a step is 5; expected a string"):
        bench(0, ["a", 5])
    with pytest.raises(ValueError, match="for 0 steps"):
        bench(0, [])
    with pytest.raises(ValueError, match="expected one label per step"):
        bench(-1, [])


SHEPHERD = {
    "input": "One? Step 1: a <<1+1=2>>2 ки\nStep 2: The answer is: 2 ки",
    "label": "One? Step 1: a <<1+1=2>>2 +\nStep 2: The answer is: 2 -",
    "task": "GSM8K",
}


def shepherd(**changes):
    return step_labels.math_shepherd(SHEPHERD | changes, "x", TEMPLATES)


def test_math_shepherd():
    steps = ("Step 1: a 2", "Step 2: The answer is: 2")
    assert shepherd() == [StepLabels("x", "One?", steps, (1, 0))]
    # A problem that speaks of steps, and texts with signs.
    row = {
        "input": "Is Step 1: x? Step 1: 1 - 1 ки",
        "label": "Is Step 1: x? Step 1: 1 - 1 +",
    }
    (made,) = shepherd(**row)
    assert (made.problem, made.steps, made.labels) == (
        "Is Step 1: x?",
        ("Step 1: 1 - 1",),
        (1,),
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": SHEPHERD["label"].replace("+\n", "ки\n")}, "label of step 1 is 'к'"),
        ({"label": SHEPHERD["label"][:-1]}, "label of step 2 is ''"),
        ({"label": SHEPHERD["label"] + " more"}, "ends with ' more'"),
        ({"label": SHEPHERD["label"].replace("a ", "b ")}, "label of step 1"),
        ({"input": SHEPHERD["input"] + " more"}, "ends with ' more'"),
        ({"input": "One? Step 1: a"}, "expected the tag 'ки' after each step"),
        (
            {"input": "One? a ки", "label": "One? a +"},
            "the input begins with 'One\\? a '; expected the problem",
        ),
        (
            {"input": "Step 1: a ки", "label": "Step 1: a +"},
            "expected the problem and then 'Step 1:'",
        ),
        (
            {
                "input": "O Step 1: a ки\nStep 3: b ки",
                "label": "O Step 1: a +\nStep 3: b +",
            },
            "step 2 begins with 'Step 3: b'",
        ),
        ({"input": None}, "field 'input' is empty"),
    ],
)
def test_math_shepherd_rows_that_do_not_fit(changes, words):
    with pytest.raises(ValueError, match=words):
        shepherd(**changes)


def test_stepwise_supervision():
    row = {
        "prompt": "One? ",
        "completions": ["a", "Step 2: b"],
        "labels": [True, False],
    }
    steps = ("Step 1: a", "Step 2: b")
    (made,) = step_labels.stepwise(row, "x", TEMPLATES)
    assert made == StepLabels("x", "One?", steps, (1, 0))
    assert [type(label) for label in made.labels] == [int, int]
    (soft,) = step_labels.stepwise(row | {"labels": [0.25, None]}, "x", TEMPLATES)
    assert soft.labels == (0.25, None)
    for labels in ([True], [None, None], [2, 0], ["+", "-"], [float("nan"), 1]):
        with pytest.raises(ValueError, match="field 'labels' is"):
            step_labels.stepwise(row | {"labels": labels}, "x", TEMPLATES)
