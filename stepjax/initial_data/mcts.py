"""Monte Carlo tree search for pairs of steps (paper, section 3.1).

A policy writes steps, and a process reward model (PRM) says how probable it is that a
step is right. Each iteration of a problem's search

1. selects a node without children, going down from the root by the rule ``uct`` or
   ``puct``;
2. expands it: samples candidates for its next step, which become its children, each
   with the probability that the PRM gives it;
3. simulates: from the most probable child it goes on for at most `depth` steps, one
   sample each. The value is the lowest probability on this way;
4. backs up: adds the value to every node from that child to the root.

The children of one node with the highest and the lowest probability make a pair.

A search ends before its last iteration when nothing is left to expand.

`step_tree` in this folder is the tree of one problem. `tree_search` drives many trees
side by side with two callables, so that it is tested without a model. Every draw has
its own key path (problem, node, visit), so a tree does not depend on what is searched
beside it.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stepjax.codec import Codec
from stepjax.initial_data.prm import Scorer, Solving
from stepjax.initial_data.step_tree import (
    Node,
    Options,
    Tree,
    back_up,
    expand,
    new_tree,
    path,
    rounded,
    select,
    steps,
)
from stepjax.lm import draws
from stepjax.lm.sampler import Sampler
from stepjax.propose import Place, make_sampling
from stepjax.records import Preference, Question
from stepjax.search import slots_to_refill
from stepjax.trajectory import Proposal, candidate_from, hash_id

EXPANSION, SIMULATION = 1, 2  # purposes of draws, see `draws.node_path`


class Leaf(NamedTuple):
    """Where the policy goes on.

    Attributes:
      problem: text of the problem.
      steps: ids of the steps so far.
      key: what its draws are keyed by: purpose, problem, node, visit.
    """

    problem: str
    steps: tuple[tuple[int, ...], ...]
    key: tuple[int, int, int, int]


# ({slot: where to go on}, samples) → {slot: candidates for the next step}.
Propose = Callable[[Mapping[int, Leaf], int], dict[int, Proposal]]


def tree_search(
    questions: Sequence[Question],
    propose: Propose,
    score: Scorer,
    *,
    slots: int,
    width: int,
    options: Options,
    fits: Callable[[Solving], bool] = lambda solving: True,
    on_free: Callable[[int], None] = lambda slot: None,
    active: Mapping[int, Tree] | None = None,
    on_pause: Callable[[Mapping[int, Tree]], None] | None = None,
    pause_now: Callable[[], bool] = lambda: False,
) -> Iterator[Tree]:
    """Searches all questions, `slots` at a time; yields each tree when it is done.

    Args:
      questions: problems without answers.
      propose: writes candidates.
      score: reads the PRM.
      slots: problems in flight.
      width: samples per expansion.
      options: how a tree is searched.
      fits: whether a solution leaves room for another step.
      on_free: called with a slot before another problem takes it.
      active: slot → tree in flight of an interrupted search that goes on here; none of
        them is in `questions`.
      on_pause: called with the trees in flight, between two iterations, whenever
        `slots` more trees were yielded: from there a search can go on.
      pause_now: whether to call `on_pause` before the next iteration in any case.

    Yields:
      Finished trees, in the order in which they finish.
    """
    queue = collections.deque(questions)
    active, closed = dict(active or {}), 0
    while queue or active:
        if on_pause and (closed >= slots or pause_now()):
            on_pause(active)
            closed = 0
        for slot in slots_to_refill(slots, active)[: len(queue)]:
            on_free(slot)
            active[slot] = new_tree(queue.popleft())
        iterations = {}
        for slot, tree in list(active.items()):
            leaf = _next_leaf(tree, options, fits)
            if leaf is None:
                del active[slot]
                closed += 1
                yield tree
            else:
                iterations[slot] = _iteration(tree, leaf, options, fits)
        _side_by_side(iterations, propose, score, width)


def _next_leaf(
    tree: Tree, options: Options, fits: Callable[[Solving], bool]
) -> int | None:
    """Returns the next node to expand, or None when the search of a tree is over.

    Iterations that end at a final node need neither policy nor PRM and are done here.
    """
    while tree.iterations < options.iterations and tree.open:
        leaf = select(tree, options)
        node = tree.nodes[leaf]
        if not (node.final or node.expanded):
            solving = Solving(tree.question.problem, steps(tree, leaf))
            if node.number < options.max_steps and fits(solving):
                return leaf
            node.final = True
            tree.open -= 1
        # A node whose samples were all malformed leads nowhere.
        back_up(tree, leaf, 0.0 if node.expanded else node.probability)
    return None


# One iteration of one tree: it yields where the policy goes on, is sent the candidates
# and their probabilities, and ends when its value is backed up.
_Iteration = Generator[Leaf, tuple[Proposal, Sequence[float]], None]


def _iteration(
    tree: Tree, node: int, options: Options, fits: Callable[[Solving], bool]
) -> _Iteration:
    """Expands a node, simulates from its most probable child, and backs the value up.

    It asks for one expansion, and then for at most `depth` simulated steps.
    """
    problem, name = tree.question.problem, hash_id(tree.question.id)
    at = steps(tree, node)
    found, probabilities = yield Leaf(problem, at, (EXPANSION, name, node, 0))
    child = expand(tree, node, found, probabilities)
    if child is None:
        back_up(tree, node, 0.0)
        return
    at, value = steps(tree, child), tree.nodes[child].probability
    final = tree.nodes[child].final
    for visit in range(options.depth):
        if final or len(at) >= options.max_steps or not fits(Solving(problem, at)):
            break
        found, probabilities = yield Leaf(problem, at, (SIMULATION, name, child, visit))
        if not found.candidates:  # the sample is malformed, and leads nowhere
            value = 0.0
            break
        (step,) = found.candidates
        value = min(value, rounded(probabilities[0]))
        at, final = (*at, step.ids), step.finished
    back_up(tree, child, value)


def _side_by_side(
    iterations: Mapping[int, _Iteration], propose: Propose, score: Scorer, width: int
) -> None:
    """Runs an iteration of each tree; together they use policy and PRM once per step.

    Args:
      iterations: slot → the iteration of its tree, not begun.
      propose: writes candidates.
      score: reads the PRM.
      width: samples per expansion; a simulation has one sample.
    """
    samples, answers = width, dict.fromkeys(iterations)
    while leaves := _sent(iterations, answers):
        proposals = propose(leaves, samples)
        wanted = {
            slot: [candidate.ids for candidate in proposal.candidates]
            for slot, proposal in proposals.items()
            if proposal.candidates
        }
        solving = {s: Solving(leaves[s].problem, leaves[s].steps) for s in wanted}
        probabilities = score(solving, wanted) if wanted else {}
        samples = 1
        answers = {s: (proposals[s], probabilities.get(s, ())) for s in leaves}


def _sent(iterations: Mapping[int, _Iteration], answers: Mapping) -> dict[int, Leaf]:
    """Sends answers to iterations; returns where those that go on want to go on."""
    leaves = {}
    for slot, answer in answers.items():
        with contextlib.suppress(StopIteration):  # the iteration has ended
            leaves[slot] = iterations[slot].send(answer)
    return leaves


def make_policy(
    sampler: Sampler,
    codec: Codec,
    *,
    seed: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
) -> Propose:
    """Returns a model as the policy of a tree search.

    Args:
      sampler: context caches of the solutions.
      codec: tokenizer and templates.
      seed: base seed.
      temperature: of the samples.
      top_p: of the samples.
      max_tokens: most tokens of a candidate.
    """
    sample = make_sampling(
        sampler,
        codec,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
    )

    def propose(leaves: Mapping[int, Leaf], samples: int) -> dict[int, Proposal]:
        places = {}
        for slot, leaf in leaves.items():
            context = sum(leaf.steps, codec.solve_prompt(leaf.problem))
            paths = [draws.node_path(*leaf.key, n) for n in range(samples)]
            places[slot] = Place(context, len(leaf.steps) + 1, paths)
        return sample(places)

    return propose


# Trees to pairs.


class Pair(NamedTuple):
    """Two children of one node.

    Attributes:
      preference: the more probable child is the chosen one.
      probabilities: of the chosen and of the rejected child.
    """

    preference: Preference
    probabilities: tuple[float, float]


def pairs(
    tree: Tree, *, per_layer: int, min_margin: float, per_node: int = 1
) -> list[Pair]:
    """Returns the pairs of a tree: per layer, those of its most visited nodes.

    Args:
      tree: a finished search.
      per_layer: most nodes with pairs among those with the same number of steps.
      min_margin: least difference of the two probabilities; equal ones make no pair.
      per_node: most pairs of one node, those with the largest differences first.
    """
    layers: dict[int, list[list[Pair]]] = collections.defaultdict(list)
    order = sorted(range(len(tree.nodes)), key=lambda n: (-tree.nodes[n].visits, n))
    for index in order:
        node, made = tree.nodes[index], layers[tree.nodes[index].number]
        if len(node.children) < 2 or len(made) >= per_layer:
            continue
        children = [tree.nodes[n] for n in node.children]
        best = sorted(children, key=lambda c: (-c.probability, -c.step.count))
        worst = sorted(children, key=lambda c: (c.probability, -c.step.count))
        drawn = [(a, b) for a in best for b in worst if _margin(a, b) > 0]
        drawn = [sides for sides in drawn if _margin(*sides) >= min_margin]
        found = sorted(drawn, key=lambda sides: -_margin(*sides))[:per_node]
        if found:
            made.append(
                [_pair(tree, index, n, *sides) for n, sides in enumerate(found)]
            )
    return [p for number in sorted(layers) for own in layers[number] for p in own]


def undecided_pairs(tree: Tree) -> list[Pair]:
    """Returns pairs of steps that the PRM does not tell apart.

    Each is of the two most frequent children of a node that share its lowest
    probability.

    Args:
      tree: a finished search.
    """
    made = []
    for index, node in enumerate(tree.nodes):
        children = [tree.nodes[n] for n in node.children]
        lowest = min((child.probability for child in children), default=None)
        equal = [child for child in children if child.probability == lowest]
        if len(equal) > 1:
            one, other, *_ = sorted(equal, key=lambda child: -child.step.count)
            made.append(_pair(tree, index, "undecided", one, other))
    return made


def _margin(one: Node, other: Node) -> float:
    return one.probability - other.probability


def _pair(tree: Tree, node: int, name: int | str, chosen: Node, rejected: Node) -> Pair:
    """Returns a pair of children of a node; the first pair has the node's own id."""
    preference = Preference(
        f"{tree.question.id}/{node}" + (f"/{name}" if name else ""),
        tree.question.problem,
        tuple(tree.nodes[n].step.text for n in path(tree, node)),
        chosen.step.text,
        rejected.step.text,
    )
    return Pair(preference, (chosen.probability, rejected.probability))


def summary(trees: Sequence[Tree]) -> dict[str, float]:
    """Returns what the trees hold on average, and the share of malformed samples."""
    count = max(len(trees), 1)
    nodes = [node for tree in trees for node in tree.nodes]
    sampled = sum(node.step.count for node in nodes if node.step)
    malformed = sum(node.malformed for node in nodes)
    return {
        "trees": len(trees),
        "iterations": sum(tree.iterations for tree in trees) / count,
        "nodes": len(nodes) / count,
        "expanded": sum(node.expanded for node in nodes) / count,
        "malformed": malformed / max(sampled + malformed, 1),
    }


# Trees as rows of a file.


def to_row(tree: Tree) -> dict[str, Any]:
    """Returns a tree as a JSON object."""
    row = dataclasses.asdict(tree)
    return row.pop("question") | row


def from_row(row: dict[str, Any]) -> Tree:
    """Returns the tree that `to_row` wrote."""
    nodes = []
    for item in row["nodes"]:
        step = item["step"] and candidate_from(item["step"])
        nodes.append(Node(**item | {"step": step}))
    question = Question(row["id"], row["problem"])
    return Tree(question, nodes, row["iterations"], row["open"])
