"""Sequences that begin alike as one tree that holds what they share once (numpy)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


class PrefixTree(NamedTuple):
    """Sequences as one tree of n tokens; all int32.

    Attributes:
      tokens: token ids, [n].
      parent: index of the token before on the path, -1 for the root, [n].
      position: depth, [n].
      subtree_end: first index after the token's subtree, [n].
      places: for each sequence, the index of each of its tokens.
    """

    tokens: np.ndarray
    parent: np.ndarray
    position: np.ndarray
    subtree_end: np.ndarray
    places: list[np.ndarray]


def lay_out(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    """Returns sequences as one tree, depth first; all begin with the same token.

    Of two branches, the one of the earlier sequence comes first.
    """
    children: list[dict[int, int]] = []  # of each node: token → node
    tokens: list[int] = []
    paths: list[list[int]] = []  # nodes of each sequence
    for sequence in sequences:
        siblings = {sequence[0]: 0} if children else {}
        paths.append([])
        for token in sequence:
            node = siblings.get(token)
            if node is None:
                node = siblings[token] = len(tokens)
                tokens.append(token)
                children.append({})
            paths[-1].append(node)
            siblings = children[node]
    order: list[int] = []  # depth first
    parent, position = [], []
    stack: list[tuple[int, int, int]] = [(0, -1, 0)]  # node, place of parent, depth
    while stack:
        node, above, depth = stack.pop()
        place = len(order)
        order.append(node)
        parent.append(above)
        position.append(depth)
        below = [(child, place, depth + 1) for child in children[node].values()]
        stack.extend(reversed(below))
    end = list(range(1, len(order) + 1))
    for place in reversed(range(1, len(order))):
        end[parent[place]] = max(end[parent[place]], end[place])
    place_of = np.argsort(order)
    return PrefixTree(
        np.asarray(tokens, np.int32)[order],
        np.asarray(parent, np.int32),
        np.asarray(position, np.int32),
        np.asarray(end, np.int32),
        [place_of[path].astype(np.int32) for path in paths],
    )
