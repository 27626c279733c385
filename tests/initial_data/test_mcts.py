import functools
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
from fakes import candidate, grown_tree, proposal, random_parameters
from small_models import small_decoder

from stepjax import propose
from stepjax.codec import Codec
from stepjax.initial_data import mcts, prm, step_tree
from stepjax.initial_data.mcts import Pair
from stepjax.initial_data.prm import Solving
from stepjax.initial_data.step_tree import Options
from stepjax.lm import model as lm
from stepjax.lm import sharding
from stepjax.lm.sampler import Sampler
from stepjax.prompts import Templates
from stepjax.records import Preference, Question
from stepjax.trajectory import Candidate, Proposal
from stepjax.worlds import arithmetic

UCT = Options(iterations=30, depth=2, max_steps=9, rule="uct", exploration=1.0)
QUESTION = Question("q", "a problem")


# Whole searches with fakes: spelling a word, one letter per step.

WORDS = {"q-cat": "cat", "q-horse": "horse", "q-ox": "ox", "q-zebra": "zebra"}
QUESTIONS = [Question(name, word) for name, word in WORDS.items()]


def spell(log=None):
    """A policy that draws letters by key; a word's last letter ends the solution."""

    def propose(leaves, samples):
        result = {}
        for slot, leaf in leaves.items():
            if log is not None:
                log.append((leaf, samples))
            drawn = [
                "acehorstxzb"[np.random.default_rng([*leaf.key, n]).integers(11)]
                for n in range(samples)
            ]
            last = len(leaf.steps) == len(leaf.problem) - 1
            result[slot] = Proposal(
                tuple(
                    candidate(x, drawn.count(x), last)
                    for x in dict.fromkeys(drawn)
                    if x != "b"  # a letter that is malformed
                ),
                drawn.count("b"),
            )
        return result

    return propose


def know_the_word(solving, candidates):
    """0.9 for the right next letter of the word, else 0.1."""
    return {
        slot: np.array(
            [
                0.9 if bytes(ids).decode() == own.problem[len(own.steps)] else 0.1
                for ids in candidates[slot]
            ]
        )
        for slot, own in solving.items()
    }


def searched(slots, questions=QUESTIONS, options=UCT, score=know_the_word, log=None):
    trees = mcts.tree_search(
        questions, spell(log), score, slots=slots, width=4, options=options
    )
    return {tree.question.id: tree for tree in trees}


def rows(trees):
    return {name: json.dumps(mcts.to_row(tree)) for name, tree in trees.items()}


@pytest.mark.parametrize("rule", ["uct", "puct"])
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_a_tree_does_not_depend_on_what_is_searched_beside_it(slots, rule):
    options = UCT._replace(rule=rule)
    alone = rows(searched(4, options=options))
    assert rows(searched(slots, QUESTIONS[::-1], options)) == alone
    assert rows(searched(slots, QUESTIONS[2:], options)) == {
        name: alone[name] for name in ("q-ox", "q-zebra")
    }


def test_the_search_digs_where_the_prm_sees_the_right_step():
    tree = searched(4, options=UCT._replace(iterations=100, exploration=0.3))["q-cat"]
    right = [n for n in tree.nodes[0].children if tree.nodes[n].step.text == "c"]
    visits = {n: tree.nodes[n].visits for n in tree.nodes[0].children}
    assert right == [] or max(visits, key=visits.get) == right[0]
    layers = {node.number for node in tree.nodes}
    assert layers == {0, 1, 2, 3} and tree.nodes[-1].probability in (0.1, 0.9)
    for node in tree.nodes:
        for child in node.children:
            assert tree.nodes[child].visits <= node.visits + 1
        assert 0 <= node.total <= node.visits


def test_the_value_is_the_lowest_probability_of_the_new_step_and_the_simulation():
    """Depth 0: the child's own. Depth 2: two more steps, one sample each."""
    log = []
    shallow = searched(1, QUESTIONS[1:2], UCT._replace(depth=0, iterations=1))
    deep = searched(1, QUESTIONS[1:2], UCT._replace(iterations=1), log=log)
    one, other = (trees["q-horse"].nodes for trees in (shallow, deep))
    child = max(one[1:], key=lambda node: node.visits)
    assert one[0].total == child.probability and one[0].visits == 1
    purposes = [(leaf.key[0], samples) for leaf, samples in log]
    assert purposes == [(mcts.EXPANSION, 4), (mcts.SIMULATION, 1), (mcts.SIMULATION, 1)]
    assert [len(leaf.steps) for leaf, _ in log] == [0, 1, 2]
    values = [child.probability]
    for number, (leaf, _) in enumerate(log[1:]):
        assert leaf.key[3] == number
        (drawn,) = spell()({0: leaf}, 1)[0].candidates
        right = drawn.text == leaf.problem[len(leaf.steps)]
        values.append(0.9 if right else 0.1)
    assert other[0].total == min(values)


def test_a_search_ends_when_nothing_is_left_to_expand():
    tree = searched(1, QUESTIONS[2:3], UCT._replace(iterations=10_000))["q-ox"]
    assert tree.iterations < 10_000 and tree.open == 0
    assert all(node.expanded or node.final for node in tree.nodes)
    assert {node.number for node in tree.nodes if node.final} == {2}


def test_a_solution_without_room_is_not_expanded():
    options = UCT._replace(max_steps=1, iterations=1000)
    tree = searched(1, QUESTIONS[1:2], options)["q-horse"]
    assert {node.number for node in tree.nodes} == {0, 1}
    tight = mcts.tree_search(
        QUESTIONS[1:2],
        spell(),
        know_the_word,
        slots=1,
        width=4,
        options=UCT._replace(iterations=1000),
        fits=lambda solving: len(solving.steps) < 2,
    )
    (tree,) = tight
    assert {node.number for node in tree.nodes} == {0, 1, 2}
    assert all(node.final for node in tree.nodes if node.number == 2)


def test_a_node_whose_samples_are_all_malformed_leads_nowhere():
    def propose(leaves, samples):
        return {slot: Proposal((), samples) for slot in leaves}

    (tree,) = mcts.tree_search(
        [QUESTION], propose, know_the_word, slots=2, width=4, options=UCT
    )
    assert tree.iterations == 1 and len(tree.nodes) == 1
    assert tree.nodes[0].malformed == 4 and tree.nodes[0].total == 0
    assert mcts.pairs(tree, per_layer=1, min_margin=0) == []
    assert mcts.summary([tree])["malformed"] == 1.0


def test_a_slot_is_freed_before_another_problem_takes_it():
    freed = []
    list(
        mcts.tree_search(
            QUESTIONS,
            spell(),
            know_the_word,
            slots=2,
            width=4,
            options=UCT,
            on_free=freed.append,
        )
    )
    assert len(freed) == 4 and set(freed) == {0, 1}


def test_an_interrupted_search_goes_on_where_it_paused():
    whole, pauses = rows(searched(2)), []

    def keep(in_flight):
        pauses.append({slot: mcts.to_row(tree) for slot, tree in in_flight.items()})

    def search(questions, active=None):
        return mcts.tree_search(
            questions,
            spell(),
            know_the_word,
            slots=2,
            width=4,
            options=UCT,
            active=active,
            on_pause=keep,
        )

    first = [tree for tree, _ in zip(search(QUESTIONS), range(3), strict=False)]
    assert len(pauses) == 1 and len(pauses[0]) >= 1
    active = {
        slot: mcts.from_row(json.loads(json.dumps(row)))
        for slot, row in pauses[0].items()
    }
    closed = {tree.question.id: tree for tree in first[:2]}
    begun = {tree.question.id for tree in active.values()} | closed.keys()
    rest = list(search([q for q in QUESTIONS if q.id not in begun], active))
    assert {tree.question.id for tree in rest} == whole.keys() - closed.keys()
    assert rows(closed | {tree.question.id: tree for tree in rest}) == whole


def test_a_tree_is_read_back_as_it_was_written():
    for tree in searched(4).values():
        again = mcts.from_row(json.loads(json.dumps(mcts.to_row(tree))))
        assert mcts.to_row(again) == mcts.to_row(tree)
        assert again.open == tree.open and again.nodes[1].step == tree.nodes[1].step


# Pairs.


def test_a_pair_is_the_best_and_the_worst_child_of_one_node():
    tree = grown_tree(0.4, 0.9, 0.1, 0.9, counts=[1, 1, 1, 2])
    (pair,) = mcts.pairs(tree, per_layer=1, min_margin=0)
    assert pair == Pair(Preference("q/0", "a problem", (), "d", "c"), (0.9, 0.1))
    step_tree.expand(tree, 4, proposal("x", "y"), (0.3, 0.6))
    first, second = mcts.pairs(tree, per_layer=1, min_margin=0)
    assert first == pair
    assert second.preference == Preference("q/4", "a problem", ("d",), "y", "x")
    # 0.6 - 0.3 is below the margin.
    assert mcts.pairs(tree, per_layer=1, min_margin=0.31) == [pair]
    assert mcts.pairs(grown_tree(0.5, 0.5), per_layer=1, min_margin=0) == []
    assert mcts.pairs(grown_tree(0.5), per_layer=1, min_margin=0) == []


def test_a_node_can_give_several_pairs_those_with_the_largest_margins_first():
    tree = grown_tree(1.0, 0.0, 0.0, 1.0, counts=[1, 1, 3, 2])  # a b c d
    made = mcts.pairs(tree, per_layer=1, min_margin=0, per_node=3)
    found = [tuple(vars(pair.preference).values()) for pair in made]
    assert found == [
        ("q/0", "a problem", (), "d", "c"),
        ("q/0/1", "a problem", (), "d", "b"),
        ("q/0/2", "a problem", (), "a", "c"),
    ]
    assert len(mcts.pairs(tree, per_layer=1, min_margin=0, per_node=9)) == 4
    tree = grown_tree(0.9, 0.5, 0.1)
    made = mcts.pairs(tree, per_layer=1, min_margin=0.4, per_node=9)
    assert [pair.probabilities for pair in made] == [(0.9, 0.1), (0.9, 0.5), (0.5, 0.1)]


def test_undecided_pairs_are_the_most_frequent_of_the_lowest():
    tree = grown_tree(0.0, 1.0, 0.0, 0.0, counts=[1, 9, 2, 3])
    (pair,) = mcts.undecided_pairs(tree)
    assert pair == Pair(
        Preference("q/0/undecided", "a problem", (), "d", "c"), (0.0, 0.0)
    )
    step_tree.expand(tree, 2, proposal("x", "y"), (1.0, 1.0))
    last = mcts.undecided_pairs(tree)[1].preference
    assert (last.id, last.steps) == ("q/2/undecided", ("b",))
    assert mcts.undecided_pairs(grown_tree(0.1, 0.2, 0.2)) == []


def test_each_layer_gives_the_pairs_of_its_most_visited_nodes():
    tree = grown_tree(0.9, 0.8, 0.1)
    for child in (1, 2, 3):
        step_tree.expand(tree, child, proposal("x", "y"), (0.2, 0.8))
    for _ in range(3):
        step_tree.back_up(tree, 2, 0.5)
    step_tree.back_up(tree, 3, 0.5)

    def ids(per_layer):
        made = mcts.pairs(tree, per_layer=per_layer, min_margin=0)
        return [pair.preference.id for pair in made]

    assert ids(1) == ["q/0", "q/2"]
    assert ids(2) == ["q/0", "q/2", "q/3"]
    assert ids(9) == ["q/0", "q/2", "q/3", "q/1"]


# A real model: the same trees for any number of slots, and how much is computed.


@functools.cache
def models():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    model = small_decoder(136, mesh, feed_forward=32)
    shapes = lm.abstract_params(model)
    return model, mesh, random_parameters(shapes, 1), random_parameters(shapes, 2)


class Recording(Sampler):
    """A sampler that knows all beginnings of the contexts that each slot has held."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.beginnings = set()

    def hold(self, wanted):
        for slot, ids in wanted.items():
            ends = range(1, len(ids) + 1)
            self.beginnings |= {(slot, tuple(ids[:end])) for end in ends}
        super().hold(wanted)


class Searched(NamedTuple):
    """Trees by problem, the two samplers, and what a search without caches computes."""

    trees: dict
    writer: Recording
    reader: Recording
    by_node: int

    @property
    def computed(self):
        return sum(
            sampler.computed + sampler.fed_tokens + sampler.new_tokens
            for sampler in (self.writer, self.reader)
        )


class Parser:
    """Turns what a random model samples into steps: its ids choose the digit."""

    def __init__(self, codec, unit):
        self.codec, self.stops = codec, ("\n",)

    def proposal(self, number, samples, stopped, logps):
        texts = [f"Step {number}: 8*7+4={sum(ids) % 10}" for ids in samples]
        return Proposal(
            tuple(
                Candidate(
                    self.codec.step(text), text, texts.count(text), 0.0, number == 4
                )
                for text in dict.fromkeys(texts)
            )
        )


def model_trees(codec, slots, remember):
    """Searches four problems with random models, 12 iterations each."""
    model, mesh, *both = models()
    writer, reader = (
        Recording(model, params, mesh, slots, 384, remember=remember) for params in both
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propose, "CandidateParser", Parser)
        policy = mcts.make_policy(
            writer, codec, seed=3, temperature=1.0, top_p=0.9, max_tokens=6
        )
    score = prm.make_scorer(reader, codec, width=4)
    by_node = 0

    def proposed(leaves, samples):
        nonlocal by_node
        for leaf in leaves.values():
            prompt = len(codec.solve_prompt(leaf.problem))
            by_node += samples * (prompt + sum(map(len, leaf.steps)))
        return policy(leaves, samples)

    def scored(solving, candidates):
        nonlocal by_node
        for slot, own in candidates.items():
            for ids in own:
                read = Solving(solving[slot].problem, (*solving[slot].steps, ids))
                by_node += len(prm.context(codec, read))
        return score(solving, candidates)

    def free(slot):
        for sampler in (writer, reader):
            sampler.hold({slot: ()})  # two problems share no prompt
            sampler.forget(slot)

    problems = arithmetic.problems(4, seed=0, operations=4)
    trees = mcts.tree_search(
        [Question(f"q{n}", text) for n, text in enumerate(problems)],
        proposed,
        scored,
        slots=slots,
        width=4,
        options=UCT._replace(iterations=12),
        on_free=free,
    )
    named = {tree.question.id: tree for tree in trees}
    return Searched(named, writer, reader, by_node + writer.new_tokens)


@pytest.fixture(scope="module")
def searches(codec, quick_compiles):
    """Two slots without a memory, and a slot for each problem with one.

    The prompt is that of `Templates`, which is as long as that of a real run.
    """
    codec = Codec(codec.tokenizer, Templates())
    return model_trees(codec, 2, 0), model_trees(codec, 4, 4096)


def test_the_trees_of_a_model_do_not_depend_on_slots_or_memory(searches):
    few, many = (search.trees for search in searches)
    for name, tree in few.items():
        other = many[name]
        assert len(tree.nodes) == len(other.nodes)
        for one, two in zip(tree.nodes, other.nodes, strict=True):
            assert (one.step, one.parent, one.visits) == (
                two.step,
                two.parent,
                two.visits,
            )
            # The last bits of a float32 differ, which may show in the fourth decimal.
            assert abs(one.probability - two.probability) < 1.5e-4
    nodes = sum(len(tree.nodes) for tree in few.values())
    assert nodes > 100  # and they are no trees of one path


def test_a_context_is_computed_once_for_its_whole_subtree(searches):
    plain, search = searches
    for sampler, other in zip(search[1:3], plain[1:3], strict=True):
        assert sampler.computed == len(sampler.beginnings) < other.computed
        assert sampler.restored > 0 and other.restored == 0
    assert search.by_node == plain.by_node
    assert search.computed < search.by_node / 10
