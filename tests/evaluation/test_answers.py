import concurrent.futures
import json
import math
import os
import pathlib
import subprocess
import sys

import answer_pairs
import hypothesis
import pytest

from stepjax import prompts
from stepjax.evaluation import answers, typesetting


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", None),
        ("The answer is 7.", None),
        (r"Step 1: \boxed{ 7 }", "7"),
        (r"\boxed{1}, no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{2", "1"),
        (r"\boxed{1}, or \boxed{2}, or \boxed{3}? The answer is 1.", "3"),
        (r"\boxed{\text{if } x \in \{1, \{2\}\}}", r"\text{if } x \in \{1, \{2\}\}"),
        (r"**Answer: $\boxed{7}$**", "7"),
        (r"Write the answer in \boxed{}. It is 7.", None),
        (r"\boxed{7}. This is \boxed{ }.", "7"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("3 + 4 = 7\n####7 \n", "7"),
        ("#### 1,234\nmore\n#### 5\n\nbye", "5"),
        ("x #### 7", None),
        ("####\n7", None),
        ("\\boxed{8}\n#### 7", "8"),
        ("\\boxed{8\n#### 7", "7"),
        (r"So \boxed 2.", "2"),
        (r"So \boxed 2.5 and \boxed x", "x"),
        ("#### Third Solution:\nIt is 7.", None),
        ("#### 7\n#### Another method", "7"),
    ],
)
def test_extract(text, expected):
    assert answers.extract(text) == expected


@pytest.mark.parametrize("prediction, gold", answer_pairs.PLAIN_EQUAL)
def test_equal_in_both_directions(prediction, gold):
    assert answers.equivalent(prediction, gold) is True
    assert answers.equivalent(gold, prediction) is True


@pytest.mark.parametrize("prediction, gold", answer_pairs.EQUAL)
def test_equal(prediction, gold):
    assert answers.equivalent(prediction, gold) is True


@pytest.mark.parametrize("prediction, gold", answer_pairs.DIFFERENT)
def test_different(prediction, gold):
    assert answers.equivalent(prediction, gold) is False


# Each of these took seconds, or the memory of the machine, in a system that simplifies.
HOSTILE = [
    "2^" * 130 + "2",
    "x^" * 190 + "2",
    "9999999!",
    "5" + "!" * 300,
    r"10^{10^{10}}",
    r"\sin(10^{9999999})",
    "((2^{9999999})^{9999999})^{9999999}",
    r"\binom{1000}{500}^" * 15 + "9",
    "9" * 200 + "^" + "9" * 150,
    "(" * 190 + "6" + ")" * 190,
    r"\frac{1}{" * 60 + "2" + "}" * 60,
    "{" * 100_000,
    "1/" * 190 + "3",
    r"[0,1]\cup" * 40 + "[0,1]",
    r"\pm1" * 60,
    "|" * 300,
    r"\begin{pmatrix}" + "1&" * 150 + r"1\end{pmatrix}",
]


@pytest.mark.parametrize("place", range(len(HOSTILE)))
def test_hostile_answers_are_different_and_end(place):
    assert answers.equivalent(HOSTILE[place], "5") is False
    assert answers.equivalent("5", HOSTILE[place]) is False


def test_many_brackets_around_a_number_change_nothing():
    assert answers.equivalent("(" * 190 + "5" + ")" * 190, "5") is True


def test_a_number_beyond_all_digits_is_not_its_successor():
    assert answers.equivalent("2^{999999}+1", "2^{999999}") is False
    assert answers.equivalent("2^{999999}", "2^{999999}") is True


def test_a_long_decimal_is_no_root():
    assert (
        answers.equivalent(
            f"{math.isqrt(2 * 10**600)}"[:1] + "." + f"{math.isqrt(2 * 10**600)}"[1:],
            r"\sqrt2",
        )
        is False
    )


def test_every_thread_gets_the_same_verdicts():
    pairs = [*answer_pairs.EQUAL, *answer_pairs.DIFFERENT] * 2
    expected = [answers.equivalent(*pair) for pair in pairs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: answers.equivalent(*pair), pairs))
    assert found == expected


def test_comparing_answers_does_not_load_jax():
    code = (
        "import sys\n"
        "from stepjax.evaluation import answers\n"
        "assert answers.equivalent(r'\\sqrt{12}', r'2\\sqrt3')\n"
        "print(sorted({'sympy', 'jax', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(answers.__file__).parents[2],
    )
    assert done.stdout == "[]\n"


@hypothesis.given(
    hypothesis.strategies.lists(
        hypothesis.strategies.sampled_from(
            [*r"{}()[]12x+-^,;|<=!_&$.: ", r"\frac", r"\sqrt", r"\cup", r"\{", r"\}"]
            + [r"\text{a}", r"\pi", r"\pm", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\"]
        ),
        max_size=14,
    )
)
def test_any_text_gets_a_verdict(parts):
    text = "".join(parts)
    verdicts = answers.equivalent(text, "1"), answers.equivalent("1", text)
    assert {*map(type, verdicts)} == {bool}
    assert answers.equivalent(text + "1", text + "1") or not _items(text + "1")


def _items(text):
    """Whether a text has no empty item, so that it is an answer."""
    return all(typesetting.parse(item).body for item in answers._readings(text)[0])


# Of these rows of MATH "answer" is the last box of the solution only, and the form that
# people wrote is the whole answer of several boxes.
OF_SEVERAL_BOXES = {2549, 2656, 2703, 2716, 2912, 2936, 4559, 4562, 4860}


@pytest.mark.skipif(
    "STEPJAX_DATA" not in os.environ,
    reason="STEPJAX_DATA is unset: no folder with eval/math.jsonl to read",
)
def test_forms_of_people_mean_the_answer():
    path = pathlib.Path(os.environ["STEPJAX_DATA"], "eval", "math.jsonl")
    forms, differing = 0, set()
    for line in path.read_text(encoding="utf-8").split("\n"):
        row = json.loads(line) if line else {}
        for form in row.get("human_answers", ()):
            forms += 1
            if not answers.equivalent(form, row["answer"]):
                differing.add(int(row["id"].rpartition("/")[2]))
    assert forms > 3900
    assert differing == OF_SEVERAL_BOXES


@pytest.mark.skipif(
    "STEPJAX_DATA" not in os.environ,
    reason="STEPJAX_DATA is unset: no folder with eval/*.jsonl to read",
)
def test_real_gold_answers():
    folder = pathlib.Path(os.environ["STEPJAX_DATA"], "eval")
    golds = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")
        golds += [json.loads(line)["answer"] for line in lines if line]
    golds = [gold for gold in golds if gold]
    assert len(golds) > 1000
    for gold in golds:
        assert answers.equivalent(gold, gold)
        solution = "Step 1: So \\boxed{ " + gold.replace(r"\frac", r"\dfrac") + " }."
        found = answers.extract(solution)
        assert found is not None and prompts.boxed(solution) is not None
        assert answers.equivalent(found, gold)
    for gold in golds[::40]:
        assert not answers.equivalent(gold + "1", gold) or not gold[-1:].isdigit()
