"""Values from completions: a fake policy in exact numbers, a real one in any batch."""

import dataclasses

import numpy as np
import pytest
from fakes import FakeSampler, random_parameters
from small_models import small_decoder

from stepjax.initial_data import rollouts, step_values
from stepjax.initial_data.rollouts import Attempts
from stepjax.lm import draws
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler
from stepjax.records import Problem
from stepjax.settings import Rollouts
from stepjax.trajectory import hash_id
from stepjax.worlds import arithmetic

OPTIONS = Rollouts(
    problems=0, solutions=2, samples=4, temperature=0.7, top_p=0.95, max_tokens=40
)
TEXT = "8*7+4*4+2"
RIGHT, WRONG = "Step 1: 8*7+4=0", "Step 1: 8*7+4=5"
END, WRONG_END = "Step 2: 0*4+2=2; \\boxed{2}", "Step 2: 5*4+2=3; \\boxed{3}"


def problem(name="q", text=TEXT):
    return Problem(name, text, arithmetic.solve(text).answer)


def is_correct(problem, text):
    return text.endswith(f"\\boxed{{{problem.answer}}}")


def solution(codec, *texts, end=True):
    """The ids of the steps; a whole solution ends with EOS."""
    ids = [codec.step(text) for text in texts]
    return (*ids[:-1], (*ids[-1], codec.tokenizer.eos_id)) if end else tuple(ids)


def estimate(codec, rows, respond, *, slots=2, check=is_correct, **options):
    sampler = FakeSampler(codec, slots, respond)
    options = dataclasses.replace(OPTIONS, **options)
    made = list(rollouts.values(sampler, codec, rows, check, options, seed=5))
    return made, sampler


# A fake policy.


def of_four(codec):
    """What is written after each beginning; the sample's number chooses one of four."""
    eos = (codec.tokenizer.eos_id,)
    line = codec.line
    table = {
        "": [
            line(f"{RIGHT}\n{END}") + eos,
            line(f"{WRONG}\n{WRONG_END}") + eos,
            line(f"{WRONG}\n{END}\nStep 3: and on"),  # boxed, no EOS
            line(f"{RIGHT}\n{END}; \\boxed{{3}}") + eos,  # the first box counts
        ],
        f"{RIGHT}\n": [
            line(END) + eos,
            line(END),
            line(END) + eos,
            line("Step 2: 0*4+2=2") + eos,  # ends without a box
        ],
        f"{WRONG}\n": [
            line(END)[:-1],  # the box is open when the budget ends
            line(WRONG_END) + eos,
            line("Step 2: \\boxed{3} \\boxed{2}") + eos,
            line(END) + eos,
        ],
    }

    def respond(context, prompt, path):
        text = context + prompt
        assert text.startswith(f"{TEXT}\n")
        return table[text.removeprefix(f"{TEXT}\n")][path[4]]

    return respond


def test_a_value_is_the_share_of_right_completions(codec):
    rows = [
        Attempts(
            problem(),
            (
                solution(codec, RIGHT, END),
                solution(codec, WRONG, WRONG_END),
                solution(codec, WRONG, end=False),
            ),
        )
    ]
    (made,), sampler = estimate(codec, rows, of_four(codec))
    assert made.solutions == ((RIGHT, END), (WRONG, WRONG_END), (WRONG,))
    assert made.values == ((0.75, 0.75, 1.0), (0.75, 0.25, 0.0), (0.75, 0.25))
    # Three beginnings of four rows: a common one once, a finished one never.
    assert len(sampler.asked) == 12
    assert step_values.labels(made)[0].labels == (1.0, 1.0)
    (pair,) = step_values.pairs(made, margin=0.5)
    assert (pair.chosen, pair.rejected, pair.steps) == (RIGHT, WRONG, ())


def test_each_completion_has_the_path_of_its_place(codec):
    steps = solution(codec, WRONG, WRONG_END), solution(codec, RIGHT, END)
    _, sampler = estimate(codec, [Attempts(problem(), steps)], of_four(codec))
    places = {"": (0, 0), f"{WRONG}\n": (0, 1), f"{RIGHT}\n": (1, 1)}
    for number, row in enumerate(sampler.asked):
        place = places[(row.context + row.prompt).removeprefix(f"{TEXT}\n")]
        assert row.path == draws.node_path(3, hash_id("q"), *place, number % 4)
    assert len({row.path for row in sampler.asked}) == 12
    for batch in sampler.batches:
        assert batch.options["seed"] == 5 and batch.options["budget"] == 40
        assert (batch.options["temperature"], batch.options["top_p"]) == (0.7, 0.95)


def test_only_the_text_through_the_first_box_is_checked(codec):
    asked = []

    def check(problem, text):
        asked.append(text)
        return True

    rows = [Attempts(problem(), (solution(codec, RIGHT, END),))]
    (made,), _ = estimate(codec, rows, of_four(codec), check=check)
    assert asked == [
        f"{RIGHT}\n{END}",  # the finished solution itself
        f"{RIGHT}\n{END}",
        f"{WRONG}\n{WRONG_END}",
        f"{WRONG}\n{END}",
        f"{RIGHT}\n{END}",
        f"{RIGHT}\n{END}",
        f"{RIGHT}\n{END}",
        f"{RIGHT}\n{END}",
        f"{RIGHT}\nStep 2: 0*4+2=2",
    ]
    assert made.values == ((1.0, 1.0, 1.0),)


def test_a_completion_that_the_budget_cut_off_is_wrong_whatever_the_gold_says(codec):
    def yes(problem, text):
        return True

    rows = [Attempts(problem(), (solution(codec, WRONG, end=False),))]
    (made,), _ = estimate(codec, rows, of_four(codec), check=yes)
    assert made.values == ((1.0, 0.75),)  # one of four has an open box
    budget = len(codec.line(f"{RIGHT}\n{END}")) - 1
    (made,), _ = estimate(codec, rows, of_four(codec), check=yes, max_tokens=budget)
    assert made.values == ((0.0, 0.75),)


def test_a_beginning_that_does_not_fit_has_no_value(codec):
    rows = [Attempts(problem(), (solution(codec, RIGHT, END),))]
    sampler = FakeSampler(codec, 1, of_four(codec))
    prompt = codec.solve_prompt(TEXT)
    sampler.capacity = len(prompt)  # the last token need not fit
    (made,) = rollouts.values(sampler, codec, rows, is_correct, OPTIONS, seed=0)
    assert made.values == ((0.75, None, 1.0),)
    assert step_values.labels(made) == []
    sampler.capacity = len(prompt) - 2
    (made,) = rollouts.values(sampler, codec, rows, is_correct, OPTIONS, seed=0)
    assert made.values == ((None, None, 1.0),)


def test_problems_without_solutions_and_finished_ones_need_no_policy(codec):
    boxed = (codec.line("Step 1: \\boxed{}"),)  # an empty box is a box
    rows = [Attempts(problem("a"), ()), Attempts(problem("b"), (boxed,))]
    (a, b), sampler = estimate(
        codec, rows, lambda *_: codec.line(END) + (codec.tokenizer.eos_id,)
    )
    assert (a.solutions, a.values) == ((), ())
    assert b.values == ((1.0, 0.0),) and len(sampler.asked) == 4
    assert estimate(codec, [], None)[0] == []


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_problems_are_yielded_as_they_finish_with_the_same_values(codec, slots):
    texts = arithmetic.problems(5, seed=3, operations=3)
    rows = []
    for number, text in enumerate(texts):
        steps = arithmetic.solve(text).steps
        shorter = solution(codec, *steps[: number % 3], end=False) if number % 3 else ()
        rows.append(Attempts(problem(f"p{number}", text), (shorter,)))

    def respond(context, prompt, path):
        text = (context + prompt).split("\n")[0]
        rng = np.random.default_rng(path)  # right in some draws
        answer = arithmetic.solve(text).answer if rng.random() < 0.6 else "x"
        return codec.line(f"\\boxed{{{answer}}}") + (codec.tokenizer.eos_id,)

    made, sampler = estimate(codec, rows, respond, slots=slots, samples=8)
    assert [len(row.values[0]) for row in sorted(made, key=lambda row: row.id)] == [
        1, 2, 3, 1, 2,
    ]  # fmt: skip
    alone = [estimate(codec, [row], respond, slots=1, samples=8)[0][0] for row in rows]
    assert sorted(made, key=lambda row: row.id) == alone
    assert len({row.values for row in made}) > 2
    order = [row.id for row in made]
    if slots == 1:
        assert order == ["p0", "p1", "p2", "p3", "p4"]
    if slots == 2:  # p0 is first done; p3 takes its place before p2 is done
        assert order == ["p0", "p1", "p3", "p2", "p4"]
    assert len(sampler.batches) == {1: 9, 2: 5, 3: 4, 7: 3}[slots]


def test_counts_below_one_are_refused(codec):
    with pytest.raises(ValueError, match="rollouts.samples=0; expected 1 or more"):
        estimate(codec, [], None, samples=0)
    none = dataclasses.replace(OPTIONS, solutions=0)
    with pytest.raises(ValueError, match="rollouts.solutions=0; expected 1 or more"):
        list(rollouts.solutions(FakeSampler(codec, 1, None), codec, [], none, seed=0))


# Solutions of the policy.


def test_sampled_solutions_are_cut_into_steps(codec):
    eos = codec.tokenizer.eos_id
    line = codec.line

    def cut(ids, ended):
        steps = rollouts.cut_steps(codec, tuple(ids), ended)
        assert sum(steps, ()) == tuple(ids)[: sum(map(len, steps))]
        return [codec.text(step) for step in steps]

    whole = (*line(f"{RIGHT}\n{END}"), eos)
    assert cut(whole, True) == [RIGHT, END]
    assert rollouts.cut_steps(codec, whole, True) == solution(codec, RIGHT, END)
    assert cut(line(f"{RIGHT}\n{END}\nStep 3: on"), False) == [RIGHT, END]
    assert cut(line(f"{RIGHT}\nStep 2: 0*4"), False) == [RIGHT]  # cut off
    assert cut((*line(f"{RIGHT}\nStep 3: 0*4=0"), eos), True) == [RIGHT]  # no step 2
    assert cut((*line(f"{RIGHT}\nmore\nStep 2: x"), eos), True) == [
        f"{RIGHT}\nmore",
        "Step 2: x",
    ]
    for text in ("", "8*7+4=0", "\nStep 1: x", "Step 1: "):
        ids = () if not text else codec.tokenizer.encode_line("a" + text)[1:]
        assert cut((*ids, eos), True) == []
    assert cut((), False) == cut((), True) == []


def test_solutions_are_distinct_and_those_without_a_step_are_left_out(codec):
    eos = (codec.tokenizer.eos_id,)
    written = [
        codec.line(f"{RIGHT}\n{END}") + eos,
        codec.line("no step") + eos,
        codec.line(f"{WRONG}\n"),
        codec.line(f"{RIGHT}\n{END}") + eos,
        codec.line(f"{WRONG}\n{END}") + eos,
    ]
    sampler = FakeSampler(codec, 2, lambda context, prompt, path: written[path[4]])
    sampler.capacity = len(codec.solve_prompt(TEXT)) - 1
    problems = [problem(name) for name in "abc"]
    problems[1] = problem("b", "8*7+4*4+2*3+1")  # too long
    options = dataclasses.replace(OPTIONS, solutions=5)
    made = list(rollouts.solutions(sampler, codec, problems, options, seed=0))
    both = solution(codec, RIGHT, END), solution(codec, WRONG, END)
    assert made == [
        Attempts(problems[0], both),
        Attempts(problems[1], ()),
        Attempts(problems[2], both),
    ]
    paths = [draws.node_path(4, hash_id(n), 0, 0, i) for n in "ac" for i in range(5)]
    assert [row.path for row in sampler.asked] == paths


def test_through_first_box():
    through = rollouts.through_first_box
    assert through("a \\boxed{1} b \\boxed{2}") == "a \\boxed{1}"
    assert through("\\boxed{a{b}}}") == "\\boxed{a{b}}"
    assert through("\\boxed{1") == "\\boxed{1" and through("") == ""
    assert through("x \\boxed{}") == "x \\boxed{}"


# A real model.


@pytest.fixture(scope="module")
def policy(codec, quick_compiles):
    """A random model; stop ids and digits are often drawn."""
    model = small_decoder(codec.tokenizer.vocab_size)
    return model, random_parameters(lm.abstract_params(model))


def test_values_do_not_depend_on_slots_or_on_other_problems(codec, policy, one_device):
    texts = arithmetic.problems(5, seed=4, operations=3)
    rows = []
    for number, text in enumerate(texts):
        steps = arithmetic.solve(text).steps
        wrong = (arithmetic.read_step(steps[0]).result + 1) % 10
        other = arithmetic.with_result(steps[0], wrong), *steps[1 : 1 + number % 2]
        written = (
            solution(codec, *steps[:2], end=False),
            solution(codec, *other, end=False),
            solution(codec, *steps),
        )
        rows.append(Attempts(problem(f"p{number}", text), written))
    checked = {}

    def check(problem, text):
        checked.setdefault(problem.id, []).append(text)
        return hash_id(text) % 2 == 0  # any rule that depends on every token

    options = dataclasses.replace(OPTIONS, samples=6, max_tokens=60, temperature=1.5)

    def run(rows, slots):
        checked.clear()
        sampler = Sampler(*policy, one_device, slots, 80)
        made = list(rollouts.values(sampler, codec, rows, check, options, seed=2))
        texts = {name: sorted(written) for name, written in checked.items()}
        return {row.id: row for row in made}, texts, sampler

    four, texts, _ = run(rows, 4)
    assert len(four) == 5 and sum(map(len, texts.values())) > 40
    assert len({value for row in four.values() for v in row.values for value in v}) > 3
    for slots, order in ((1, rows), (4, rows[::-1]), (4, rows[2:])):
        made, again, sampler = run(order, slots)
        assert made == {row.problem.id: four[row.problem.id] for row in order}
        assert again == {row.problem.id: texts[row.problem.id] for row in order}
    # Alone, each token of a problem's beginnings is computed once.
    _, _, sampler = run(rows[:1], 1)
    (one, two), (other,), _ = rows[0].solutions
    prompt = codec.solve_prompt(rows[0].problem.problem)
    beginnings = [(), one, one + two, other]  # of each, its last token is fed
    held = {
        (prompt + beginning)[:end]
        for beginning in beginnings
        for end in range(1, len(prompt + beginning))
    }
    assert one != other and sampler.computed == len(held)
    assert sampler.fed_tokens == 4 * 6


def test_solutions_of_a_real_model_do_not_depend_on_slots(codec, policy, one_device):
    texts = arithmetic.problems(5, seed=6, operations=3)
    problems = [problem(f"p{number}", text) for number, text in enumerate(texts)]
    # As many rows and tokens as above, so that the same programs are used.
    options = dataclasses.replace(OPTIONS, solutions=6, max_tokens=60)

    def run(problems, slots):
        sampler = Sampler(*policy, one_device, slots, 80)
        return list(rollouts.solutions(sampler, codec, problems, options, seed=2))

    made = run(problems, 4)
    assert [row.problem for row in made] == problems
    assert made == run(problems, 1) and made[3:] == run(problems[3:], 4)
