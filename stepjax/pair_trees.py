"""Preference pairs along one search as a tree: a trunk with branches (numpy).

The problem and the best steps are the trunk. Each rejected step is a branch beside the
chosen step that was preferred to it, so that all pairs of a solution share one pass
over their common context (`stepjax.forest`).
"""

from collections.abc import Sequence

import numpy as np

from stepjax.forest import IdPair, Tree


def trajectory_tree(pairs: Sequence[IdPair], first_segment: int = 0) -> Tree:
    """Returns pairs along one trunk as one tree.

    Pair number p (in the order given) has segments ``first_segment + 2 p`` (chosen)
    and ``first_segment + 2 p + 1`` (rejected); its scored tokens are exactly those
    of its two steps.

    Args:
      pairs: pairs whose contexts grow along one path: the longest context plus chosen
        step, the trunk, begins with every other context plus chosen step.
      first_segment: segment of the first pair's chosen step.

    Raises:
      ValueError: when a pair does not lie on the trunk, or a part is empty.
    """
    for pair in pairs:
        check(pair)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].context))
    trunk = max((pair.context + pair.chosen for pair in pairs), key=len)
    tokens, parent, position, end = [], [], [], []
    trunk_index = []  # row index of each trunk token
    scored, segment = [], []
    done = 0  # trunk tokens laid out so far

    def lay_trunk(upto: int):
        nonlocal done
        for depth in range(done, upto):
            parent.append(trunk_index[-1] if trunk_index else -1)
            trunk_index.append(len(tokens))
            tokens.append(trunk[depth])
            position.append(depth)
            end.append(-1)  # the whole tree, filled in below
        done = max(done, upto)

    for i in order:
        pair, start = pairs[i], len(pairs[i].context)
        both = pair.context + pair.chosen
        if trunk[: len(both)] != both:
            raise ValueError(
                f"pair {i} (context of {start} tokens) does not lie on the trunk of "
                f"{len(trunk)} tokens; expected nested contexts. Group the pairs by "
                "trajectory (see `group_by_trunk`)."
            )
        lay_trunk(start)
        branch = len(tokens)
        for depth, token in enumerate(pair.rejected):
            parent.append(trunk_index[start - 1] if depth == 0 else len(tokens) - 1)
            scored.append(len(tokens))
            segment.append(first_segment + 2 * i + 1)
            tokens.append(token)
            position.append(start + depth)
            end.append(branch + len(pair.rejected))
    lay_trunk(len(trunk))
    for i, pair in enumerate(pairs):
        start = len(pair.context)
        scored.extend(trunk_index[start : start + len(pair.chosen)])
        segment.extend([first_segment + 2 * i] * len(pair.chosen))
    end = np.asarray(end, np.int32)
    end[trunk_index] = len(tokens)
    return Tree(
        np.asarray(tokens, np.int32),
        np.asarray(parent, np.int32),
        np.asarray(position, np.int32),
        end,
        np.asarray(scored, np.int32),
        np.asarray(segment, np.int32),
        np.ones(len(scored), np.float32),
    )


def check(pair: IdPair) -> None:
    """Raises ValueError when a part of a pair has no tokens."""
    if not (pair.context and pair.chosen and pair.rejected):
        raise ValueError(
            f"a pair has {len(pair.context)} context, {len(pair.chosen)} chosen "
            f"and {len(pair.rejected)} rejected tokens; expected at least 1 each."
        )


def group_by_trunk(pairs: Sequence[IdPair], row_length: int) -> list[list[int]]:
    """Groups pairs that can share one tree of at most `row_length` tokens.

    Args:
      pairs: preferences in any order.
      row_length: most tokens of a tree.

    Returns:
      Lists of indices into `pairs`, each a valid argument of `trajectory_tree`;
      every pair is in exactly one.

    Raises:
      ValueError: when a single pair alone is longer than `row_length`.
    """
    groups: list[list[int]] = []
    trunks: list[tuple[int, ...]] = []
    sizes: list[int] = []
    by_root: dict[tuple[int, ...], list[int]] = {}  # first context → group numbers
    lengths: dict[int, None] = {}  # lengths of those contexts, ascending
    for i in sorted(range(len(pairs)), key=lambda i: len(pairs[i].context)):
        pair = pairs[i]
        alone = len(pair.context) + len(pair.chosen) + len(pair.rejected)
        check_length(i, alone, row_length)
        near = (g for n in lengths for g in by_root.get(pair.context[:n], ()))
        for g in near:
            start = len(trunks[g])
            both = pair.context + pair.chosen
            grown = sizes[g] + max(len(both) - start, 0) + len(pair.rejected)
            short = min(len(both), start)
            if both[:short] == trunks[g][:short] and grown <= row_length:
                groups[g].append(i)
                trunks[g] = max(both, trunks[g], key=len)
                sizes[g] = grown
                break
        else:
            by_root.setdefault(pair.context, []).append(len(groups))
            lengths[len(pair.context)] = None
            groups.append([i])
            trunks.append(pair.context + pair.chosen)
            sizes.append(alone)
    return groups


def check_length(number: int, tokens: int, row_length: int) -> None:
    """Raises ValueError when a pair alone has more tokens than a row."""
    if tokens > row_length:
        raise ValueError(
            f"pair {number} has {tokens} tokens; expected at most row_length="
            f"{row_length}. Raise train.row_length or drop the pair."
        )
