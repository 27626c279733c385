"""The tree of one problem's search: selection, expansion and back-up, without a model.

A node is a step, and its children are candidates for the next one. `mcts` in this
folder says what an iteration does, and drives many trees side by side.

Where the paper is silent: a child's own probability counts as its first visit, so that
every child has a mean value; identical candidates are one child with a count; and
probabilities are rounded to four decimals. The last bits of a float32 depend on what
else is in the batch, and a choice between two children hardly ever hangs on what is
left.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from stepjax.records import Question
from stepjax.trajectory import Candidate, Proposal


class Options(NamedTuple):
    """How a tree is searched; see the section ``mcts`` of `stepjax.config`."""

    iterations: int
    depth: int
    max_steps: int
    rule: str
    exploration: float


@dataclasses.dataclass
class Node:
    """A step in a tree; the root is the problem before its first step.

    Attributes:
      parent: index of the node before it, or None for the root.
      step: the step, or None for the root.
      probability: that the PRM calls the step right; 1 for the root.
      number: how many steps the solution has up to here.
      visits: iterations that passed through it, and one for its own probability.
      total: sum of their values.
      children: indices of the nodes after it.
      expanded: whether its children were sampled.
      final: whether nothing can follow: the solution is complete, or has no room.
      malformed: samples that were left out when it was expanded.
    """

    parent: int | None
    step: Candidate | None
    probability: float
    number: int
    visits: int
    total: float
    children: list[int] = dataclasses.field(default_factory=list)
    expanded: bool = False
    final: bool = False
    malformed: int = 0


@dataclasses.dataclass
class Tree:
    """The search of one problem.

    Attributes:
      question: the problem, without an answer.
      nodes: the root first; a node comes after its parent.
      iterations: those that are done.
      open: how many nodes can still be expanded.
    """

    question: Question
    nodes: list[Node]
    iterations: int = 0
    open: int = 1


def new_tree(question: Question) -> Tree:
    """Returns a tree that holds the root alone."""
    return Tree(question, [Node(None, None, 1.0, 0, 0, 0.0)])


def path(tree: Tree, node: int) -> list[int]:
    """Returns the indices of the nodes from the first step to this one."""
    found = []
    at: int | None = node
    while at:  # neither the root (0) nor None
        found.append(at)
        at = tree.nodes[at].parent
    return found[::-1]


def steps(tree: Tree, node: int) -> tuple[tuple[int, ...], ...]:
    """Returns the ids of the steps up to a node."""
    return tuple(tree.nodes[n].step.ids for n in path(tree, node))


def select(tree: Tree, options: Options) -> int:
    """Returns the node without children that an iteration goes down to.

    At each node the child with the highest mean value plus bonus is taken; the first
    one of equals. With N visits of the node and n of the child, the bonus is
    ``c sqrt(ln N / n)`` for "uct" (Kocsis and Szepesvári, 2006) and
    ``c p sqrt(N) / (1 + n)`` for "puct" (AlphaGo Zero, 2017), where p is the share of
    the samples that are this child.
    """
    at = 0
    while tree.nodes[at].children:
        node = tree.nodes[at]
        children = [tree.nodes[n] for n in node.children]
        samples = sum(child.step.count for child in children)
        visits = max(node.visits, 1)

        def worth(child: Node, visits=visits, samples=samples) -> float:
            mean, prior = child.total / child.visits, child.step.count / samples
            if options.rule == "uct":
                bonus = math.sqrt(math.log(visits) / child.visits)
            else:
                bonus = prior * math.sqrt(visits) / (1 + child.visits)
            return mean + options.exploration * bonus

        scores = list(map(worth, children))
        at = node.children[scores.index(max(scores))]
    return at


def expand(
    tree: Tree, node: int, proposal: Proposal, probabilities: Sequence[float]
) -> int | None:
    """Gives a node its children.

    Args:
      tree: changed in place.
      node: index of the node.
      proposal: candidates for its next step.
      probabilities: the PRM's, one per candidate.

    Returns:
      The index of the child to go on from: the most probable one, of equals the one
      that was sampled more often, then the first. None without children.
    """
    parent = tree.nodes[node]
    parent.expanded, parent.malformed = True, proposal.malformed
    tree.open -= 1
    for candidate, probability in zip(proposal.candidates, probabilities, strict=True):
        value = rounded(probability)
        parent.children.append(len(tree.nodes))
        tree.nodes.append(
            Node(
                node,
                candidate,
                value,
                number=parent.number + 1,
                visits=1,
                total=value,
                final=candidate.finished,
            )
        )
        tree.open += not candidate.finished
    if not parent.children:
        return None
    return max(
        parent.children,
        key=lambda n: (tree.nodes[n].probability, tree.nodes[n].step.count, -n),
    )


def back_up(tree: Tree, node: int, value: float) -> None:
    """Adds a value to a node and to all nodes above it, and counts the iteration."""
    at: int | None = node
    while at is not None:
        tree.nodes[at].visits += 1
        tree.nodes[at].total += value
        at = tree.nodes[at].parent
    tree.iterations += 1


def rounded(probability: float) -> float:
    """Returns a probability as trees hold it, with four decimals."""
    return round(float(probability), 4)
