"""Test-time methods with a solver that reads from tables, by hand."""

import dataclasses
import types

import pytest

from stepjax.evaluation import methods
from stepjax.evaluation.methods import METHODS, vote
from stepjax.evaluation.solver import Part, Tokens
from stepjax.records import Question
from stepjax.search import best_and_worst
from stepjax.trajectory import Candidate


def solution(text, count=1, logp=-1.0, finished=True):
    return Candidate(tuple(text.encode()), text, count, logp, finished)


def boxed(answer, count=1):
    return solution(f"\\boxed{{{answer}}}", count)


class Tables:
    """Stands in for `solver.Solver`: two problems, in slots 0 and 1.

    Its judge counts the letter "a".
    """

    def __init__(self, found=None, width=2, expansions=5):
        self.questions = {0: Question("p", "?"), 1: Question("q", "?")}
        options = types.SimpleNamespace(
            width=width, max_expansions=expansions, on_tie="back", on_reject="append"
        )
        codec = types.SimpleNamespace(solve_prompt=lambda problem: (1,))
        settings = types.SimpleNamespace(search=options)
        self.run = types.SimpleNamespace(settings=settings, codec=codec)
        self.found, self.searches = found, []

    def solutions(self, n):
        took = {0: Tokens(10 * n, 0, 3), 1: Tokens(20 * n, 0, 4)}
        return Part(self.found, took)

    def scores(self, n):
        took = {0: Tokens(0, 5, 7), 1: Tokens(0, 6, 8)}
        return Part(self.judged(self.found), took)

    def measured(self, work):
        return Part(work(), {0: Tokens(1, 2, 3), 1: Tokens(4, 5, 6)})

    def judged(self, candidates):
        return {s: [c.text.count("a") for c in own] for s, own in candidates.items()}

    def best(self, candidates):
        scores = self.judged(candidates)
        return {
            s: own[best_and_worst(own, scores[s])[0]] for s, own in candidates.items()
        }

    def joined(self, state):
        text = "".join(step.text for step in state.steps)
        return solution(text, finished=state.status == "complete")

    def searched(self, width, number, **rules):
        self.searches.append((width, number, rules))
        return {
            slot: solution("ba"[number % 2] * (slot + 1)) for slot in self.questions
        }


# Votes.


@pytest.mark.parametrize(
    ("answers", "weights", "expected"),
    [
        (["1", "2", "2"], [1, 1, 1], 1),  # the first of those that win
        (["1", "2", "2"], [3, 1, 1], 0),
        (["1", "2", "2"], [2, 1, 1], 1),  # equal sums: more solutions
        (["1", "2"], [0, 0], 0),  # and equal counts: the first
        (["1/2", "3", "0.5"], [1, 1, 1], 0),  # the same number in other words
        (["3", "1/2", "0.5"], [1.5, 1, 1], 1),
    ],
)
def test_the_answer_with_the_largest_sum_of_weights_wins(answers, weights, expected):
    candidates = [boxed(answer) for answer in answers]
    # Distinct solutions of equal answers.
    candidates = [
        solution(f"way {number}: {one.text}") for number, one in enumerate(candidates)
    ]
    assert vote(candidates, weights) is candidates[expected]


def test_a_solution_that_was_sampled_often_has_as_many_votes():
    candidates = [boxed("1"), boxed("2", count=3), solution("1 by hand: \\boxed{1}")]
    assert vote(candidates, [1, 1, 1]) is candidates[1]
    assert vote(candidates, [2, 1, 2]) is candidates[0]


def test_solutions_without_an_answer_do_not_vote():
    none = solution("I do not know", count=5)
    assert vote([none, boxed("1")], [1, 1]).text == "\\boxed{1}"
    assert vote([none], [1]) is none


# Whole solutions.


def test_methods_on_whole_solutions_and_their_tokens():
    one, many, right = solution("\\boxed{1}"), boxed("2", 3), solution("aa \\boxed{3}")
    solver = Tables({0: [one, many, right], 1: [one]})
    majority = METHODS["majority"](solver, 5)
    assert majority.found == {0: many, 1: one}
    assert majority.tokens == {0: (50, 0, 3), 1: (100, 0, 4)}
    for name in ("weighted", "best_of_n"):
        part = METHODS[name](solver, 5)
        assert part.found == {0: right, 1: one}
        assert part.tokens == {0: (50, 5, 10), 1: (100, 6, 12)}


def test_names_of_methods_are_those_of_the_command_line():
    from stepjax.cli import arguments

    assert arguments.METHODS == tuple(METHODS)
    assert set(methods.STEPWISE) < set(METHODS)


# Step by step.


class Words(Tables):
    """Its problems are solved by words of letters; "." ends one.

    Attributes:
      table: of each slot, word so far → (next letters, share of the judge) of each
        candidate.
      asked: what was continued: slot → word so far, and the purpose of the draws.
    """

    def __init__(self, *table):
        super().__init__()
        self.table, self.asked = table, []

    def shares(self, states, purpose):
        words = {slot: self.joined(state).text for slot, state in states.items()}
        self.asked.append((words, purpose))
        return {
            slot: [
                (solution(text, finished=text[-1] == "."), share)
                for text, share in self.table[slot].get(word, ())
            ]
            for slot, word in words.items()
        }


DONE = {"": [("x.", 1.0)]}


def beamed(n, *table):
    part = METHODS["beam"](Words(*table), n)
    assert part.tokens == {0: (1, 2, 3), 1: (4, 5, 6)}
    return part.found


def test_beams_go_on_by_the_product_of_their_shares():
    table = {
        "": [("a", 0.5), ("b", 0.4), ("c", 0.1)],
        "a": [("a.", 0.5), ("b.", 0.5)],  # 0.25 each
        "b": [("a.", 0.9), ("b.", 0.1)],  # 0.36 and 0.04
        "c": [("a.", 1.0)],  # 0.1
    }
    assert [beamed(n, table, DONE)[0].text for n in (1, 2, 3)] == ["aa.", "ba.", "ba."]
    assert beamed(2, DONE, table)[1].text == "ba."


def test_only_the_best_beams_go_on():
    table = {"": [("a", 0.5), ("b", 0.3), ("c", 0.2)]}
    table |= {word: [("d.", 1.0)] for word in "abc"}
    solver = Words(table, DONE)
    METHODS["beam"](solver, 2)
    # A problem that is solved is not continued.
    assert [words for words, _ in solver.asked] == [
        {0: "", 1: ""},
        {0: "a"},
        {0: "b"},
    ]
    # Every expansion of one step has draws of its own.
    assert len({purpose for _, purpose in solver.asked[1:]}) == 2


def test_a_finished_beam_keeps_its_place():
    table = {"": [("a.", 0.4), ("b", 0.35), ("c", 0.25)]}
    table |= {"b": [("x", 1.0)], "c": [("x.", 1.0)], "bx": [("y.", 0.5), ("z.", 0.5)]}
    assert beamed(2, table, DONE)[0].text == "a."


def test_of_beams_with_equal_weights_the_more_probable_one_wins():
    class Sure(Words):
        def shares(self, states, purpose):
            found = super().shares(states, purpose)
            better = {"b.": -0.5}
            return {
                slot: [
                    (dataclasses.replace(c, logp=better.get(c.text, -1.0)), share)
                    for c, share in own
                ]
                for slot, own in found.items()
            }

    table = {"": [("a.", 0.5), ("b.", 0.5)]}
    part = METHODS["beam"](Sure(table, DONE), 1)
    assert part.found[0].text == "b."


def test_a_beam_without_candidates_gives_way_or_ends_unfinished():
    table = {"": [("a", 0.9), ("b", 0.1)], "b": [("c.", 1.0)]}
    found = beamed(2, table, {"": [("a", 1.0)]})
    assert found[0].text == "bc." and found[0].finished
    assert found[1].text == "a" and not found[1].finished


def test_a_beam_search_ends_after_the_budget_of_steps():
    endless = {"a" * n: [("a", 1.0)] for n in range(9)}
    found = beamed(1, endless, DONE)
    assert found[0].text == "aaaaa" and not found[0].finished


def test_dvts_takes_the_best_of_searches_that_never_go_back():
    solver = Tables()
    part = METHODS["dvts"](solver, 3)
    assert solver.searches == [(2, n, {"on_tie": "append"}) for n in range(3)]
    assert {slot: one.text for slot, one in part.found.items()} == {0: "a", 1: "aa"}


def test_step_search_is_the_search_of_the_run_with_n_candidates():
    solver = Tables()
    part = METHODS["step_search"](solver, 4)
    rules = {"on_tie": "back", "on_reject": "append"}
    assert solver.searches == [(4, 0, rules)]
    assert part.found[1].text == "bb"
