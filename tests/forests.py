"""The rules of forest rows once more, in plain numpy, and pairs to try them on."""

import numpy as np

from stepjax.forest import IdPair

VOCAB = 23
FIRST = IdPair((1, 2), (3,), (7, 8))
SECOND = IdPair((1, 2, 3, 4), (5, 6), (9,))  # the step 4 between them has no pair


def mask_of(subtree_end):
    """Who sees whom in a row, by the rule of `stepjax.forest`, [n, n] bool."""
    index = np.arange(len(subtree_end))
    query, key = index[:, None], index[None, :]
    return (key <= query) & (query < np.asarray(subtree_end)[None, :])


def path_to(parent, index):
    """Indices from the root to `index`."""
    path = []
    while index >= 0:
        path.append(int(index))
        index = parent[index]
    return path[::-1]


def ancestors(parent):
    """Who is on whose path, [n, n] bool, from the parents alone."""
    seen = np.zeros((len(parent), len(parent)), bool)
    for i in range(len(parent)):
        seen[i, path_to(parent, i)] = True
    return seen


def solution(rng, prompt, steps, pairs, first=0):
    """Pairs of one solution; `pairs` maps a step's number to its branch's length."""

    def draw(n):
        return tuple(int(x) for x in rng.integers(first, VOCAB, n))

    texts, context, found = [draw(n) for n in steps], draw(prompt), []
    for number, text in enumerate(texts):
        if number in pairs:
            found.append(IdPair(context, text, draw(pairs[number])))
        context += text
    return found
