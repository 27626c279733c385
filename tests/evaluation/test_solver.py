"""The solver of test-time methods on a tiny run: samples, counts, what is judged."""

import contextlib
import itertools

import numpy as np
import pytest
from runs import copy_run

from stepjax.evaluation.solver import Solver, Tokens, distinct
from stepjax.records import Problem, Question
from stepjax.run import judges
from stepjax.trajectory import Candidate, State, Verdict, hash_id

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def run(quick_runs, tmp_path_factory):
    return copy_run(tmp_path_factory.mktemp("solver") / "run", judge__rows=4)


@pytest.fixture(scope="module")
def params(run):
    return run.sampling_params(2)


def opened(run, params, most, count=3):
    solver = Solver(run, params, contextlib.ExitStack(), samples=most)
    solver.take(questions(run)[:count])
    return solver


def questions(run):
    return [Question(row.id, row.problem) for row in run.dir.read("test", Problem)]


def texts(part):
    return {slot: [c.text for c in own] for slot, own in part.found.items()}


def test_fewer_solutions_are_the_first_of_more(run, params):
    many, few = opened(run, params, 5), opened(run, params, 2)
    assert texts(many.solutions(2)) == texts(few.solutions(2))
    assert many.solutions(2).tokens == few.solutions(2).tokens
    # Of another problem of the batch nothing depends on it.
    alone = opened(run, params, 5, count=1)
    assert texts(alone.solutions(5))[0] == texts(many.solutions(5))[0]


def test_tokens_are_those_that_the_engine_counts(run, params):
    solver = opened(run, params, 4)
    samplers = solver._sampler, *solver._judging
    before = [np.array([s.new_tokens, s.computed + s.fed_tokens]) for s in samplers]
    solutions, scores = solver.solutions(4), solver.scores(4)
    (wrote, read), (judged, shown) = (
        np.array([s.new_tokens, s.computed + s.fed_tokens]) - old
        for s, old in zip(samplers, before, strict=True)
    )
    total = Tokens()
    for slot in solver.questions:
        total = total.plus(solutions.tokens[slot]).plus(scores.tokens[slot])
    assert total == (wrote, judged, read + shown)
    assert 0 < judged and 0 < shown
    # A prompt is read once, and its last token once per solution.
    prompt = run.codec.solve_prompt(solver.questions[0].problem)
    assert solutions.tokens[0].read == len(prompt) - 1 + 4


def test_what_was_computed_once_is_used_again(run, params):
    solver = opened(run, params, 3)
    first = solver.scores(3)
    wrote = solver._sampler.new_tokens
    assert solver.scores(3) is first and solver._sampler.new_tokens == wrote
    solver.take(questions(run)[3:6])
    assert solver.scores(3) is not first and solver._sampler.new_tokens > wrote


def path(codec, *steps):
    """A solution of steps of the world, as it is sampled."""
    lines = [f"Step {n}: {text}" for n, text in enumerate(steps, 1)]
    ids = [codec.line(f"{line}\n") for line in lines[:-1]]
    return (*sum(ids, ()), *codec.line(lines[-1]), codec.tokenizer.eos_id)


def candidate(codec, *steps):
    ids = path(codec, *steps)
    return Candidate(ids, codec.text(ids), 1, -1.0, True)


ENDS = "4*1+0=4; \\boxed{4}", "4*1+0=5; \\boxed{5}"


def test_steps_in_common_are_the_steps_so_far(run, params):
    solver, codec = opened(run, params, 1), run.codec
    one, other = (candidate(codec, "1*1+3=4", end) for end in ENDS)
    request = solver._request(1, [solver._steps(c.ids) for c in (one, other)])
    assert (request.slot, request.problem_id) == (1, solver.questions[1].id)
    assert [codec.text(ids) for ids in request.steps] == ["Step 1: 1*1+3=4"]
    assert [codec.text(ids) for ids in request.candidates] == [
        f"Step 2: {end}" for end in ENDS
    ]
    # Nothing in common; and one that is the beginning of the other.
    short = candidate(codec, "1*1+3=4")
    cut = solver._steps(one.ids), solver._steps(short.ids)
    request = solver._request(1, list(cut))
    assert request.steps == () and request.candidates == (one.ids, short.ids)


def test_what_is_no_step_stays_behind_the_steps(run, params):
    solver, codec = opened(run, params, 1), run.codec
    rest = codec.line("+\n")
    ids = path(codec, *ENDS)[:-1] + rest
    steps = solver._steps(ids)
    assert sum(steps, ()) == ids and len(steps) >= 2
    assert solver._steps(rest) == (rest,)


def test_steps_in_common_are_shown_as_far_as_the_context_has_room(
    run, params, monkeypatch
):
    solver, codec = opened(run, params, 1), run.codec
    own = [candidate(codec, "1*1+3=4", "4*1+1=5", end) for end in ENDS]
    cut, problem = [solver._steps(c.ids) for c in own], solver.questions[0].problem
    assert len(solver._request(0, cut).steps) == 2
    context = run.kind.judgments.context
    room = len(context(codec, problem, cut[0][:1]))

    class Narrow:
        def __getattr__(self, name):
            return room if name == "context_tokens" else getattr(real, name)

    real = run.settings.judge
    settings = type("S", (), {"judge": Narrow()})()
    monkeypatch.setattr(run, "settings", settings)
    request = solver._request(0, cut)
    assert len(request.steps) == 1
    assert [sum(request.steps, ()) + rest for rest in request.candidates] == [
        c.ids for c in own
    ]


def test_solutions_meet_in_a_swiss_tournament(run, params, monkeypatch):
    asked = []

    def fake(run, sampler, rows, share=1):
        def judge(requests, calls=None):
            asked.append((rows, calls))
            # The candidate with the higher number is better.
            return [
                [Verdict(a, b, "A" if a > b else "B") for a, b in own] for own in calls
            ]

        return judge

    solver = opened(run, params, 1)
    monkeypatch.setattr(judges, "self_judge", fake)
    ends = [f"4*1+0={n}; \\boxed{{{n}}}" for n in range(4)]
    own = [candidate(run.codec, end) for end in ends]
    scores = solver.judged({0: own, 2: own[:1]})
    assert scores[2] == [None]
    assert np.argmax(scores[0]) == 3
    # Two rounds of two matches, in both orders. A solution may have 32 tokens and a
    # step 12, so 4 rows of steps are one of solutions.
    assert [(rows, len(calls[0])) for rows, calls in asked] == [(1, 4), (1, 4)]
    assert solver.best({0: own, 2: own[:1]}) == {0: own[3], 2: own[0]}


def test_equal_solutions_are_one_and_those_with_an_answer_go_first(codec):
    a, b = candidate(codec, ENDS[0]), candidate(codec, ENDS[1])
    none = candidate(codec, "1*1+3=4")
    found = distinct([a, none, b, a, a])
    assert [(c.ids, c.count) for c in found] == [(a.ids, 3), (b.ids, 1)]
    assert [c.count for c in distinct([none, none])] == [2]


# Steps.


def test_candidates_of_a_step_share_what_the_judge_gives_them(run, params, monkeypatch):
    solver = opened(run, params, 1)
    asked = []

    def judge(requests):
        asked.extend(requests)
        # Of the first problem the last candidate wins all calls, of the others nobody.
        return [
            [
                Verdict(a, b, "A" if a > b else "B")
                for a, b in itertools.permutations(range(len(request.candidates)), 2)
                if request.slot == 0
            ]
            for request in requests
        ]

    monkeypatch.setattr(solver, "_judge", judge)
    states = {slot: State(question) for slot, question in solver.questions.items()}
    shares = solver.shares(states, (77, 3))
    assert [request.path for request in asked] == [
        (77, hash_id(q.id), 1, 3) for q in solver.questions.values()
    ]
    for slot, own in shares.items():
        assert sum(share for _, share in own) == pytest.approx(1)
        counts = list(range(len(own))) if slot == 0 else [1] * len(own)
        expected = [x / sum(counts) if sum(counts) else 1 for x in counts]
        assert [share for _, share in own] == pytest.approx(expected)
    assert max(len(own) for own in shares.values()) > 1
    assert min(len(own) for slot, own in shares.items() if slot) >= 1


def test_a_context_without_room_has_no_candidates(run, params):
    solver = opened(run, params, 1)
    long = Candidate(run.codec.line("1" * 60), "1", 1, -1.0, False)
    states = {
        0: State(solver.questions[0], (long,)),
        1: State(solver.questions[1]),
    }
    drawn = [solver.shares(states, (1, place)) for place in range(8)]
    assert all(shares[0] == [] for shares in drawn)
    assert any(shares[1] for shares in drawn)
