"""The tree of one problem: selection, expansion, back-up."""

import math

import numpy as np
import pytest
from fakes import candidate, grown_tree, proposal

from stepjax.initial_data import step_tree
from stepjax.initial_data.step_tree import Options
from stepjax.records import Question
from stepjax.trajectory import Proposal

UCT = Options(iterations=30, depth=2, max_steps=9, rule="uct", exploration=1.0)


def test_uct_takes_the_highest_mean_plus_the_bonus_of_the_formula():
    tree = grown_tree(0.5, 0.6, 0.2)
    for child, value in ((1, 0.5), (2, 0.7), (2, 0.5), (3, 0.2)):
        step_tree.back_up(tree, child, value)
    visits, totals = [2, 3, 2], [1.0, 1.8, 0.4]  # a child's probability is a visit
    assert [tree.nodes[n].visits for n in (1, 2, 3)] == visits
    assert [tree.nodes[n].total for n in (1, 2, 3)] == pytest.approx(totals)
    assert tree.nodes[0].visits == 4 == tree.iterations
    for exploration in (0.0, 0.3, 1.0, 5.0):
        worth = [
            total / count + exploration * math.sqrt(math.log(4) / count)
            for total, count in zip(totals, visits, strict=True)
        ]
        options = UCT._replace(exploration=exploration)
        assert step_tree.select(tree, options) == 1 + int(np.argmax(worth))
    assert step_tree.select(tree, UCT._replace(exploration=0.0)) == 2
    assert step_tree.select(tree, UCT._replace(exploration=5.0)) == 1


def test_puct_prefers_what_was_sampled_often():
    tree = grown_tree(0.5, 0.5, counts=[1, 5])
    step_tree.back_up(tree, 1, 0.5)
    options = UCT._replace(rule="puct")
    # 0.5 + 1/6 sqrt(1) / 3 against 0.5 + 5/6 sqrt(1) / 2.
    assert step_tree.select(tree, options) == 2
    for _ in range(40):
        step_tree.back_up(tree, 2, 0.4)
    # 0.5 + 1/6 sqrt(41) / 3 = 0.856 against 0.402 + 5/6 sqrt(41) / 42 = 0.529.
    assert step_tree.select(tree, options) == 1


def test_selection_goes_down_to_a_node_without_children():
    tree = grown_tree(0.9, 0.1)
    step_tree.expand(tree, 1, proposal("x", "y"), (0.2, 0.8))
    assert step_tree.select(tree, UCT._replace(exploration=0.0)) == 4
    assert step_tree.path(tree, 4) == [1, 4]
    assert step_tree.steps(tree, 4) == ((97,), (121,))
    step_tree.back_up(tree, 4, 0.5)
    assert [node.visits for node in tree.nodes] == [1, 2, 1, 1, 2]


def test_expansion_goes_on_from_the_most_probable_child():
    tree = step_tree.new_tree(Question("q", "a problem"))
    several = (
        candidate("a", 1),
        candidate("b", 3),
        candidate("c", 2),
        candidate("d", 3),
    )
    best = step_tree.expand(tree, 0, Proposal(several, 4), (0.7, 0.8, 0.80004, 0.8))
    assert best == 2  # equal to four decimals: sampled more often, then the first
    assert [node.probability for node in tree.nodes[1:]] == [0.7, 0.8, 0.8, 0.8]
    assert tree.nodes[0].malformed == 4 and tree.nodes[0].expanded and tree.open == 4
    empty = step_tree.new_tree(Question("q", "a problem"))
    assert step_tree.expand(empty, 0, Proposal((), 6), ()) is None and empty.open == 0
