"""Whole searches: with letters and fakes, and over the world's token ids.

The fakes are pure functions of a problem's key path, as the real ones are.
"""

import random

import numpy as np
from fakes import FakeSampler, by_rank

from stepjax import propose
from stepjax.records import Question
from stepjax.search import step_search
from stepjax.trajectory import Candidate, Proposal, context_ids, hash_id
from stepjax.worlds import arithmetic

# Spelling a word, one letter per step.

WORDS = {"q-cat": "cat", "q-horse": "horse", "q-ox": "ox", "q-zebra": "zebra"}
QUESTIONS = [Question(name, f"spell {word}") for name, word in WORDS.items()]


def spell(width, letters="acehorstxzb", iteration=0, log=None):
    """A propose function: random letters, the end of the word is the solution's end."""

    def propose(active):
        if log is not None:
            log.append(dict(active))
        result = {}
        for slot, state in active.items():
            rng = np.random.default_rng(state.key_path(iteration))
            word = WORDS[state.question.id]
            drawn = rng.choice(list(letters), width).tolist()
            last = len(state.steps) == len(word) - 1
            result[slot] = Proposal(
                tuple(step(x, drawn.count(x), last) for x in dict.fromkeys(drawn))
            )
        return result

    return propose


def know_the_word(requests):
    """A judge that prefers the right next letter, and has no opinion otherwise."""
    answers = []
    for request in requests:
        right = WORDS[request.problem_id][len(request.steps)].encode()
        texts = [bytes(ids) for ids in request.candidates]
        answers.append(by_rank(*(int(text == right) for text in texts)))
    return answers


def step(text, count, finished):
    return Candidate(tuple(text.encode()), text, count, -1.0, finished)


def run(questions, slots, *, width=4, judge=know_the_word, log=None, **options):
    options = {"max_expansions": 200, "iteration": 2} | options
    propose = spell(width, iteration=options["iteration"], log=log)
    return list(step_search(questions, propose, judge, slots=slots, **options))


def test_the_known_best_path_is_found():
    states = run(QUESTIONS, 2)
    assert sorted(s.question.id for s in states) == sorted(WORDS)
    for state in states:
        word = WORDS[state.question.id]
        assert state.status == "complete"
        assert "".join(s.text for s in state.steps) == word
        assert [e.action for e in state.expansions].count("pair") >= len(word)
        for number, index in enumerate(state.pair_from):
            made = state.expansions[index]
            assert (made.step, made.action) == (number + 1, "pair")
            assert made.candidates[made.best] == state.steps[number]
            assert made.candidates[made.worst].text != word[number]
    # The search had to go back, or the test would say little.
    assert any(e.action == "back" for s in states for e in s.expansions)


def test_result_does_not_depend_on_the_slots_or_the_order():
    alone = {}
    for question in QUESTIONS:
        alone |= {state.question.id: state for state in run([question], 1)}
    for slots in (1, 2, 3, 8):
        for questions in (QUESTIONS, QUESTIONS[::-1]):
            states = run(questions, slots)
            assert len(states) == len(QUESTIONS)
            assert {state.question.id: state for state in states} == alone
    other = {state.question.id: state for state in run(QUESTIONS, 2, iteration=3)}
    assert all(other[name].expansions != alone[name].expansions for name in WORDS)


def in_flight_while_waiting(log, total):
    """How many problems each propose call had, as long as others waited."""
    started, sizes = set(), []
    for active in log:
        started |= {state.question.problem for state in active.values()}
        if len(started) < total:
            sizes.append(len(active))
    return sizes


def numbered(times):
    return [Question(name, f"{i}") for i, name in enumerate(list(WORDS) * times)]


def test_slots_are_refilled_and_each_question_closes_once():
    log, questions = [], numbered(3)
    states = run(questions, 2, log=log)
    closed = sorted(int(s.question.problem) for s in states)
    assert closed == list(range(12))
    assert all(set(active) <= {0, 1} for active in log)
    sizes = in_flight_while_waiting(log, 12)
    assert set(sizes) == {2} and len(sizes) > 20
    assert len(log[-1]) == 1
    # A question stays in its slot, and every propose call continues its state.
    places = {}
    for active in log:
        for slot, state in active.items():
            place = places.setdefault(state.question.problem, [slot, 0])
            assert place == [slot, len(state.expansions)]
            place[1] += 1
    for state in states:
        assert places[state.question.problem][1] == len(state.expansions)


def test_refill_waits_for_a_quarter_of_many_slots():
    log = []
    states = run(numbered(6), 8, log=log)
    assert len({s.question.problem for s in states}) == len(states) == 24
    sizes = in_flight_while_waiting(log, 24)
    assert min(sizes) == 7 and max(sizes) == 8


def test_no_questions_and_more_slots_than_questions():
    assert run([], 3) == []
    assert [s.question for s in run(QUESTIONS[:1], 5)] == QUESTIONS[:1]


def test_width_one_never_has_a_preference():
    for state in run(QUESTIONS, 3, width=1, max_expansions=7):
        assert (state.status, state.steps, state.pair_from) == ("budget", (), ())
        assert [e.action for e in state.expansions] == ["resample"] * 7
    for state in run(QUESTIONS, 3, width=1, max_expansions=7, on_tie="append"):
        word = WORDS[state.question.id]
        assert state.status == "complete"
        assert len(state.steps) == len(state.expansions) == len(word)
        assert state.pair_from == (None,) * len(word)


def test_a_state_that_does_not_fit_is_closed_by_length():
    def fits(state):
        return len(state.steps) < 3

    states = {s.question.id: s for s in run(QUESTIONS, 2, fits=fits)}
    assert {name: s.status for name, s in states.items()} == {
        "q-cat": "complete",  # its last step is in before there is no room
        "q-horse": "length",
        "q-ox": "complete",
        "q-zebra": "length",
    }
    horse = states["q-horse"]
    assert "".join(s.text for s in horse.steps) == "hor"
    assert len(horse.pair_from) == 3 and horse.expansions[-1].action == "pair"
    # Prompts that never fit are closed without a call.
    log = []
    closed = run(QUESTIONS, 2, log=log, fits=lambda state: False)
    assert [s.status for s in closed] == ["length"] * 4 and log == []


def test_requests_carry_ids_paths_and_slots():
    seen, log = [], []

    def judge(requests):
        assert [r.slot for r in requests] == list(log[-1])
        seen.extend(requests)
        return know_the_word(requests)

    states = run(QUESTIONS, 2, judge=judge, log=log, iteration=5)
    states = {s.question.id: s for s in states}
    by_problem = {name: [r for r in seen if r.problem_id == name] for name in WORDS}
    for name, requests in by_problem.items():
        expansions = states[name].expansions
        assert len(requests) == len(expansions)
        assert len({r.path for r in requests}) == len(requests)
        for request, made in zip(requests, expansions, strict=True):
            assert request.path == (5, hash_id(name), made.step, made.attempt)
            assert request.path == made.path
            assert request.candidates == tuple(c.ids for c in made.candidates)
            assert len(request.steps) == made.step - 1
            assert request.problem == f"spell {WORDS[name]}"
    assert len({r.path for r in seen}) == len(seen)


# The proposer over token ids, with the world's tokenizer and a solver as the model.


def solver(codec, seed):
    """Solves the world's problems, often wrongly, by the row's texts, path and seed."""

    def write(context, prompt, path):
        problem, *steps, end = (context + prompt).split("\n")
        assert end == "" and all(steps)  # whole lines, nothing fed twice
        rng = random.Random(str([seed, *path]))
        text = arithmetic.solve(problem).steps[len(steps)]
        if rng.random() < 0.5:
            text = arithmetic.corrupt(problem, steps, rng)
        if rng.random() < 0.1:
            return text  # never stops: malformed
        if "boxed" in text:
            return [*codec.tokenizer.encode_line(text), codec.tokenizer.eos_id]
        return f"{text}\nStep {len(steps) + 2}: "

    return write


def test_proposer_and_search_solve_the_world(codec):
    def gold(requests):
        answers = []
        for r in requests:
            steps = [codec.text(ids) for ids in r.steps]
            right = [
                int(arithmetic.is_right(r.problem, steps, codec.text(ids)))
                for ids in r.candidates
            ]
            answers.append(by_rank(*right))
        return answers

    texts = arithmetic.problems(6, seed=4)
    questions = [Question(f"arith-{i}", text) for i, text in enumerate(texts)]
    results = []
    for count in (1, 2, 4, 8):
        slots = FakeSampler(codec, count, solver(codec, 7))
        proposer = propose.make_proposer(
            slots,
            codec,
            width=4,
            temperature=0.6,
            top_p=0.9,
            max_tokens=24,
            iteration=1,
            seed=7,
        )
        states = step_search(questions, proposer, gold, slots=count, iteration=1)
        results.append({s.question.id: s for s in states})
        expected = {"temperature": 0.6, "top_p": 0.9, "budget": 24}
        expected |= {"seed": 7, "vocab": codec.tokenizer.vocab_size}
        assert all(expected.items() <= batch.options.items() for batch in slots.batches)
        assert all(batch.groups is None for batch in slots.batches)
        # Every row of the whole search has its own key.
        paths = [row.path for row in slots.asked]
        assert len(set(paths)) == len(paths)
        assert {path[0] for path in paths} == {1}
        assert {path[4:] for path in paths} == {(w, 0, 0) for w in range(4)}
    assert all(result == results[0] for result in results[1:])
    malformed = 0
    for question in questions:
        state = results[0][question.id]
        solved = arithmetic.solve(question.problem)
        assert state.status == "complete"
        assert tuple(s.text for s in state.steps) == solved.steps
        assert state.steps[-1].ids[-1] == codec.tokenizer.eos_id
        ids = context_ids(codec, state)
        assert ids == codec.solve_prompt(question.problem) + sum(
            (s.ids for s in state.steps), ()
        )
        assert codec.text(ids) == "\n".join([question.problem, *solved.steps])
        for made in state.expansions:
            assert made.malformed + sum(c.count for c in made.candidates) == 4
            malformed += made.malformed
    assert malformed > 0
