"""The SRLM baseline: whole solutions as candidates, each rated alone."""

import math
import random

import numpy as np
import pytest
from fakes import FakeSampler

from stepjax import judge, propose, search, self_judge, srlm
from stepjax.judge import Request
from stepjax.records import Question
from stepjax.search import transition
from stepjax.srlm import Rating
from stepjax.trajectory import Candidate, Proposal, State, Verdict
from stepjax.worlds import arithmetic, arithmetic_srlm

PROBLEM = "8*7+4*4+2*3+1"
STEPS = ("Step 1: 8*7+4=0", "Step 2: 0*4+2=2", "Step 3: 2*3+1=7; \\boxed{7}")
RATINGS = srlm.ratings(arithmetic_srlm.TEXTS)


def request(codec, candidates, steps=(), number=0, slot=0):
    ids, made = map(codec.step, steps), map(codec.step, candidates)
    path = (1, number, len(steps) + 1, 0)
    return Request(slot, f"q-{number}", PROBLEM, tuple(ids), tuple(made), path)


def ends(codec, text):
    """Token ids of a text that ends the sequence."""
    return [*codec.tokenizer.encode_line(text), codec.tokenizer.eos_id]


OPTIONS = {"max_tokens": 60, "temperature": 0.0, "top_p": 1.0, "seed": 3}


def test_ratings_come_back_one_a_solution(codec):
    answers = {"7": "Check: 0 (+) [[3]]", "9": "I can not tell", "1": "[[0]] so [[2]]"}

    def rate(context, prompt, path):
        return ends(codec, answers[prompt.split("{")[1][0]])

    fake = FakeSampler(codec, 3, rate)
    whole = [
        "\n".join((*STEPS[:2], STEPS[2].replace("7;", f"{d};").replace("{7", f"{{{d}")))
        for d in "791"
    ]
    asked = request(codec, (), slot=2)._replace(
        candidates=tuple(
            sum((codec.step(line) for line in text.split("\n")), ()) for text in whole
        )
    )
    made = self_judge.make_judge(
        fake, codec, RATINGS, mode="generate", rows=2, **OPTIONS
    )
    (verdicts,) = made([asked])
    # Sampling ends at the first rating that is written.
    assert [tuple(v[:4]) for v in verdicts] == [
        (0, 0, "3", "Check: 0 (+) [[3]]"),
        (1, 1, None, "I can not tell"),
        (2, 2, "0", "[[0]]"),
    ]
    assert {row.context for row in fake.asked} == {f"{PROBLEM}\n"}
    assert [row.prompt for row in fake.asked] == [f"{t}\n(?)\n" for t in whole]
    assert len({row.path for row in fake.asked}) == 3
    assert RATINGS.scores(3, verdicts) == [3, None, 0]
    assert judge.position_flips(verdicts) == (0, 0)


def test_a_solution_without_a_rating_is_neither_best_nor_worst():
    candidates = tuple(
        Candidate((n,), f"solution {n}", 5 - n, -1.0, True) for n in range(4)
    )
    ratings = [None, "2", "3", "1"]
    verdicts = [Verdict(i, i, winner) for i, winner in enumerate(ratings)]
    state = transition(
        State(Question("q", PROBLEM)),
        Proposal(candidates),
        verdicts,
        scores=srlm.scores,
    )
    (expansion,) = state.expansions
    assert (expansion.action, expansion.best, expansion.worst) == ("pair", 2, 3)
    assert expansion.scores == (None, 2, 3, 1) and state.status == "complete"
    unrated = [Verdict(i, i, None) for i in range(4)]
    state = transition(
        State(Question("q", PROBLEM)),
        Proposal(candidates),
        unrated,
        scores=srlm.scores,
        on_tie="append",
    )
    assert state.expansions[0].action == "append" and state.expansions[0].best == 0


def proposer_of_solutions(slots, codec, width):
    return propose.make_proposer(
        slots,
        codec,
        unit=srlm.SOLUTION,
        width=width,
        temperature=1.0,
        top_p=1.0,
        max_tokens=60,
        iteration=1,
        seed=0,
    )


def test_whole_solutions_are_proposed_and_malformed_ones_counted(codec):
    good = "\n".join(STEPS)
    answers = [good, good, "\n".join(STEPS[:2]), good.replace("Step 2", "Step 3")]
    answers += [good + "\n" + "Step 4: 7*3+1=2"]
    fake = FakeSampler(codec, 1, lambda *row: ends(codec, answers[row[2][4]]))
    proposer = proposer_of_solutions(fake, codec, 5)
    proposal = proposer({0: State(Question("q", PROBLEM))})[0]
    texts = [(c.text, c.count, c.finished) for c in proposal.candidates]
    assert texts == [(good, 2, True), (answers[4], 1, True)]
    assert proposal.malformed == 2  # no box; a step that is missing
    assert arithmetic_srlm.is_right(PROBLEM, [], good)
    assert not arithmetic_srlm.is_right(PROBLEM, [], good.replace("{7}", "{1}"))


def test_search_over_solutions_takes_one_expansion(codec):
    good, bad = "\n".join(STEPS), "\n".join((*STEPS[:2], "Step 3: 2*3+1=1; \\boxed{1}"))

    def solve(context, prompt, path):
        return ends(codec, (good, bad)[path[4] % 2])

    def score(context, prompt, path):
        return ends(codec, "[[3]]" if "{7}" in prompt else "[[2]]")

    solver, rater = FakeSampler(codec, 2, solve), FakeSampler(codec, 2, score)
    proposer = proposer_of_solutions(solver, codec, 4)
    rate = self_judge.make_judge(
        rater, codec, RATINGS, mode="generate", rows=2, **OPTIONS
    )
    questions = [Question(f"q-{n}", PROBLEM) for n in range(3)]
    found = list(
        search.step_search(questions, proposer, rate, slots=2, scores=srlm.scores)
    )
    assert len(found) == 3
    for state in found:
        assert [step.text for step in state.steps] == [good]
        assert len(state.expansions) == 1 and state.status == "complete"


# Rows and templates of ratings.


def test_a_rating_row_is_its_prompt_explanation_and_score(codec):
    row = Rating("r", PROBLEM, STEPS, 3, "Check: 0 8*7=6, 6+4=0 (+) ")
    prompt, response, rating = RATINGS.example(codec, row)
    text = codec.tokenizer.decode
    assert text(prompt) == f"{PROBLEM}\n" + "\n".join(STEPS) + "\n(?)\n"
    assert text(response) == "Check: 0 8*7=6, 6+4=0 (+) [[3]]"
    assert response[-1] == codec.tokenizer.eos_id and rating == "[[3]]"
    with pytest.raises(ValueError, match="field 'score' is 10; expected 0 to 9"):
        Rating("r", PROBLEM, STEPS, 10)


def test_ratings_are_written_and_read():
    plain = srlm.Texts()
    assert srlm.write_rating(plain, 4) == "Score: 4"
    assert srlm.read_rating(plain, "It is Score: 2, no.\nScore: 4") == 4
    assert srlm.read_rating(plain, "no score") is None
    with pytest.raises(ValueError, match="score is 10; expected 0 to 9"):
        srlm.write_rating(plain, 10)


def test_the_prompt_is_the_template_around_the_solution(codec):
    prose, problem = srlm.ratings(srlm.Texts()), "8*7+4"
    asked = Request(0, "q", problem, (), (codec.line("6*4+1"),), (0, 0, 1, 0))
    context = prose.context(codec, problem, ())
    text = codec.tokenizer.decode(context + prose.question(codec, asked, (0, 0)))
    whole = srlm.RATE.replace("{problem}", problem).replace("{solution}", "6*4+1")
    assert text == whole
    head = codec.tokenizer.decode(context)
    assert problem in head and head.endswith("[Start of solution]\n")


def test_a_held_out_solution_is_asked_as_it_was_learned(codec):
    row = Rating("r", PROBLEM, STEPS, 3)
    steps, candidates, gold = RATINGS.held_out(codec, row)
    asked = Request(0, "r", PROBLEM, steps, candidates, (0, 0, 4, 0))
    prompt = RATINGS.context(codec, PROBLEM, steps)
    prompt += RATINGS.question(codec, asked, (0, 0))
    assert (steps, gold) == ((), "3") and prompt == RATINGS.example(codec, row)[0]


def test_ratings_are_right_when_the_right_solution_has_the_higher():
    verdicts = [Verdict(0, 0, "3"), Verdict(1, 1, "2"), Verdict(2, 2, None)]
    verdicts.append(Verdict(3, 3, "4"))
    # 3 > 2 is right, 3 > 4 is wrong; the unparsed one loses both.
    found = srlm.graded(verdicts, [True, False, True, False])
    assert found == [True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rate": "{problem}\n"}, "template 'rate' has {solution} 0"),
        ({"rate": "{problem}\nx {solution}\n"}, "0 of them alone on a line"),
        ({"rate": "{solution}\n{problem}\n"}, "placeholders out of order"),
        ({"rating": "{score} points"}, "template 'rating' is '{score} points'"),
        ({"rating": "Score"}, "some text and then {score}"),
    ],
)
def test_bad_templates_of_ratings_are_refused(changes, words):
    with pytest.raises(ValueError) as error:
        srlm.ratings(srlm.Texts(**changes))
    assert words in str(error.value)


def test_ratings_of_the_world_count_the_right_steps():
    rng, scores = random.Random(0), []
    for number, problem in enumerate(arithmetic.problems(300, seed=2)):
        (row,) = arithmetic_srlm.ratings(f"r{number}", problem, rng, 0.3)
        right = [
            arithmetic.is_right(problem, row.steps[:n], step)
            for n, step in enumerate(row.steps)
        ]
        marks = [m == "(+)" for m in row.explanation.split() if m in ("(+)", "(-)")]
        assert row.score == sum(right) and marks == right
        scores.append(row.score)
    # Each of three steps is right with probability 0.7: five standard deviations.
    assert abs(np.mean(scores) - 2.1) < 5 * math.sqrt(3 * 0.21 / 300)
