"""A judge and a proposer of one's own: what they get, return, and may not return."""

import math

import pytest
from fakes import candidate

from stepjax import config, judge, own_functions
from stepjax.judge import Request
from stepjax.records import Question
from stepjax.run import ranges
from stepjax.trajectory import Refused, State

PROBLEM = "8*7+4*4+2*3+1"
TEXTS = ("Step 1: 8*7+4=0", "Step 1: 8*7+4=1", "Step 1: 8*7+4=2")


def request(codec, texts=TEXTS, steps=(), number=0):
    ids, made = map(codec.step, steps), map(codec.step, texts)
    path = (1, number, len(steps) + 1, 0)
    return Request(number, f"q-{number}", PROBLEM, tuple(ids), tuple(made), path)


def judged(codec, function, requests, calls=None, score="sum"):
    made = own_functions.judge(
        function, codec, name="judge.by='m:f'", score=score, seed=0
    )
    return made(requests, calls)


# The settings.


def test_settings_that_do_not_go_together():
    def broken(**changes):
        c = config.default()
        c.data.world = "arithmetic"
        c.update_from_flattened_dict(
            {name.replace("__", "."): value for name, value in changes.items()}
        )
        return sorted(sentence.partition("=")[0] for sentence in ranges.wrong(c))

    own = {"judge__by": "math:fsum", "search__propose_by": "math:fsum"}
    assert broken() == broken(**own) == broken(judge__schedule="knockout") == []
    assert "judge.kind" in broken(**own, judge__kind="ratings")
    proposed = {"search__propose_by": "math:fsum"}
    assert broken(**proposed, judge__kind="ratings") == ["judge.kind"]
    assert broken(**own, judge__schedule="knockout") == ["judge.schedule"]
    assert broken(**proposed, judge__schedule="knockout") == []
    assert broken(search__propose_by="random") == ["search.propose_by"]
    assert broken(judge__by="fsum") == ["judge.by"]


# The judge.


def test_the_higher_number_wins_every_call(codec):
    got = []

    def score(choices):
        got.extend(choices)
        return [[0.5, -1, 0.5] for _ in choices]

    requests = [request(codec, number=3), request(codec, TEXTS[:1], number=4)]
    verdicts = judged(codec, score, requests)
    # The second problem has one candidate, so there is nothing to judge.
    assert got == [own_functions.Choice("q-3", PROBLEM, (), TEXTS)]
    assert verdicts[1] == []
    assert [v[:3] for v in verdicts[0]] == [
        (0, 1, "A"),
        (0, 2, None),
        (1, 0, "B"),
        (1, 2, "B"),
        (2, 0, None),
        (2, 1, "A"),
    ]
    assert verdicts[0][0].response == "A 0.5, B -1"
    assert judge.win_counts(3, verdicts[0], "sum") == [2, 0, 2]
    named = judged(codec, score, requests[:1], [[(2, 1)]])
    assert [[v[:3] for v in answers] for answers in named] == [[(2, 1, "A")]]


def test_the_function_is_not_called_for_nothing(codec):
    def score(choices):
        raise AssertionError("there is nothing to judge")

    assert judged(codec, score, [request(codec, TEXTS[:1])]) == [[]]


def test_the_steps_so_far_are_texts(codec):
    steps = ("Step 1: 8*7+4=0", "Step 2: 0*4+2=2")
    texts = ("Step 3: 2*3+1=7; \\boxed{7}", "Step 3: 2*3+1=8; \\boxed{8}")
    (choice,) = [
        own_functions._choice(codec, r) for r in [request(codec, texts, steps)]
    ]
    assert (choice.steps, choice.candidates) == (steps, texts)


def test_numpy_numbers_and_arrays_are_numbers(codec):
    np = pytest.importorskip("numpy")
    for made in (np.array([[1, 2, 3]]), [np.float32([1, 2, 3])], [list(np.arange(3))]):
        (verdicts,) = judged(codec, lambda choices, made=made: made, [request(codec)])
        assert judge.win_counts(3, verdicts, "sum") == [0, 2, 4]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (None, "returned None for 1 problems; expected a list of 1 lists"),
        ([], "returned [] for 1 problems"),
        ([1.0, 2.0], "returned [1.0, 2.0] for 1 problems"),
        ({"q-0": [1, 2, 3]}, "expected a list of 1 lists"),
        ([[1.0, 2.0]], "[1.0, 2.0] for problem 'q-0'; expected a list of 3 numbers"),
        ([0.5], "returned 0.5 for problem 'q-0'; expected a list of 3 numbers"),
        ([[1, "2", 3]], "returned '2' for candidate 1 of problem 'q-0'"),
        ([[1, math.nan, 3]], "returned nan for candidate 1"),
        ([[1, 2, math.inf]], "returned inf for candidate 2"),
        ([[True, 2, 3]], "returned True for candidate 0"),
        ([[None, 2, 3]], "returned None for candidate 0"),
    ],
)
def test_a_wrong_return_value_of_a_judge_is_named(codec, made, words):
    with pytest.raises(ValueError) as caught:
        judged(codec, lambda choices: made, [request(codec)])
    assert str(caught.value).startswith("judge.by='m:f' returned ")
    assert words in str(caught.value)


# The proposer.


def proposed(codec, function, steps=(), width=4, max_tokens=30):
    def measure(contexts, candidates):
        measured.append(
            (contexts, {slot: list(ids) for slot, ids in candidates.items()})
        )
        return {
            slot: [-float(len(ids)) for ids in made]
            for slot, made in candidates.items()
        }

    measured = []
    propose = own_functions.proposer(
        function,
        codec,
        measure,
        name="search.propose_by='m:f'",
        width=width,
        max_tokens=max_tokens,
        iteration=2,
        seed=5,
    )
    state = State(Question("q", PROBLEM), tuple(steps))
    return propose({6: state})[6], measured


def test_texts_become_candidates(codec):
    got = []

    def write(places):
        got.extend(places)
        return [["8*7+4=0", "Step 1: 8*7+4=0", " Step 1: 8*7+4=1\n", "\\boxed{7}"]]

    proposal, measured = proposed(codec, write)
    (place,) = got
    assert place[:4] == ("q", PROBLEM, (), 4) and 0 <= place.seed < 2**32
    made = {c.text: c for c in proposal.candidates}
    assert list(made) == ["Step 1: 8*7+4=0", "Step 1: 8*7+4=1", "Step 1: \\boxed{7}"]
    assert [c.count for c in made.values()] == [2, 1, 1]
    first, _, last = made.values()
    assert first.ids == codec.step("Step 1: 8*7+4=0") and not first.finished
    assert last.ids == (*codec.step(last.text), codec.tokenizer.eos_id)
    assert last.finished and proposal.malformed == 0
    assert [c.logp for c in made.values()] == [-len(c.ids) for c in made.values()]
    contexts, asked = measured[0]
    assert contexts == {6: codec.solve_prompt(PROBLEM)}
    assert asked == {6: [c.ids for c in made.values()]}


def test_the_seed_of_a_place_is_its_own(codec):
    def seeds(steps):
        got = []

        def write(places):
            got.extend(place.seed for place in places)
            return [[]]

        assert proposed(codec, write, steps)[0].candidates == ()
        return got

    done = [candidate("Step 1: 8*7+4=0")]
    assert seeds(()) == seeds(()) != seeds(done)


def test_texts_that_are_no_single_step_are_malformed(codec):
    long = "Step 1: " + "8*7+4=0;" * 9
    texts = ["", "Step 1:  ", "Step 1: a\nStep 2: b", long, "Step 1: 8 [[A]]"]
    proposal, _ = proposed(codec, lambda places: [texts], width=5)
    assert (proposal.candidates, proposal.malformed) == ((), 5)
    assert proposal.refused == (
        Refused("cut off", 1, long),
        Refused("verdict", 1, "Step 1: 8 [[A]]"),
        Refused("other", 3, "Step 1: "),
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            ["8*7+4=0"],
            "returned '8*7+4=0' for problem 'q'; expected a list of at most 4",
        ),
        ([["a", 3]], "returned ['a', 3] for problem 'q'"),
        ([["a"] * 5], "expected a list of at most 4 texts"),
        ([], "expected a list of 1 lists, one per problem"),
        (None, "returned None for 1 problems"),
    ],
)
def test_a_wrong_return_value_of_a_proposer_is_named(codec, made, words):
    with pytest.raises(ValueError) as caught:
        proposed(codec, lambda places: made)
    assert str(caught.value).startswith("search.propose_by='m:f' returned ")
    assert words in str(caught.value)
