"""Ragged prompts as arrays of few shapes: numpy, before `stepjax.lm.generate`."""

from collections.abc import Sequence

import numpy as np

from stepjax import forest
from stepjax.lm.generate import Leads, Prefix, Rows

PROMPT_BUCKET = 16  # lengths of prompts are compiled in multiples of it

Ids = Sequence[int]


def lay_out(
    held: Sequence[Ids],
    slots: Sequence[int] | None,
    prompts: Sequence[Sequence[Ids]],
    share: Sequence[int],
    last: int = 0,
    size: int = 0,
) -> tuple[Prefix, Rows]:
    """Lays ragged prompts out as arrays of few shapes.

    Prompts become [G, W, T], left-padded, with G and T in buckets. Common prefixes
    of rows become `Leads`.

    Args:
      held: ids that each slot holds.
      slots: slot of each group; None for all in order.
      prompts: ids of each row of each group.
      share: block sizes of the levels of leads.
      last: most tokens at the end of a row that are scored; 0 when sampling. They
        and the token that predicts the first of them stay out of a lead. The final
        token is never fed, so lengths are bucketed without it.
      size: with `slots`, G is a bucket of multiples of it; 0 takes the number of slots.

    Returns:
      The prefix without its contexts, and the rows without key paths; host arrays.
    """
    groups, width, unfed = len(prompts), len(prompts[0]), min(last, 1)
    for larger, block in zip((width, *share), share, strict=False):
        if larger % block:
            raise ValueError(
                f"share={tuple(share)} for groups of {width} rows; expected each "
                "number to divide the one before it, and the first the rows."
            )
    if slots is not None:
        groups = forest.bucket(groups, size or len(held))
    levels = []
    for block in share:
        common, prompts = split_blocks(prompts, block, last + 1)
        levels.append(common)
    longest = max((len(ids) for group in prompts for ids in group), default=1)
    length = max(1, longest - unfed)
    if length > 1:
        # Rows behind a lead end in verdicts: short, of equal length, so they need
        # no coarse bucket.
        length = forest.bucket(length, 1 if share and last else PROMPT_BUCKET)
    lead = max((len(ids) for common in levels for ids in common), default=0)
    lead = forest.bucket(lead, PROMPT_BUCKET)
    if share and length > PROMPT_BUCKET:  # few shapes: one length for both
        length = lead = max(length, lead)
    leads = tuple(
        padded_leads(common, (groups, width // block, lead))
        for common, block in zip(levels, share, strict=True)
    )
    length += unfed
    tokens = np.zeros((groups, width, length), np.int32)
    start = np.zeros((groups, width), np.int32)
    active = np.zeros((groups, width), bool)
    slot_of, lengths = np.zeros((2, groups), np.int32)
    order = range(len(prompts)) if slots is None else slots
    for g, (slot, group) in enumerate(zip(order, prompts, strict=True)):
        slot_of[g], lengths[g] = slot, len(held[slot])
        for w, ids in enumerate(group):
            if len(ids):
                tokens[g, w, length - len(ids) :] = ids
                start[g, w] = length - len(ids)
                active[g, w] = True
    slot_of = None if slots is None else slot_of
    return Prefix(None, slot_of, lengths, leads), Rows(tokens, start, active)


def check_window(window: int, prefix: Prefix, rows: Rows, new: int = 0) -> None:
    """Raises ValueError for a row whose sequence is longer than a sliding window.

    Args:
      window: most tokens of a sequence; 0 for no limit.
      prefix: what comes before the rows.
      rows: what is decoded.
      new: most tokens that are sampled after them.
    """
    width, length = rows.prompts.shape[1:]
    counts = length - rows.start + prefix.lengths[:, None]
    for level in prefix.leads:
        counts = counts + np.repeat(level.counts, width // level.counts.shape[1], 1)
    longest = int(counts[rows.active].max(initial=0)) + new
    if window and longest > window:
        raise ValueError(
            f"a sequence of {longest} tokens, {new} new ones included; expected at "
            f"most {window}, because layers of this model have a sliding window of "
            f"{window} tokens, which the decoder does not compute. Lower the settings "
            "that say how many tokens are read and sampled."
        )


def real_tokens(prefix: Prefix, rows: Rows) -> np.ndarray:
    """Returns how many tokens leads and rows of each group hold, without padding, [G].

    Args:
      prefix: from `lay_out`.
      rows: from `lay_out`.
    """
    tokens = np.where(rows.active, rows.prompts.shape[-1] - rows.start, 0).sum(1)
    return tokens + sum(level.counts.sum(1) for level in prefix.leads)


def split_blocks(prompts, size: int, least: int) -> tuple[list, list]:
    """Splits each block of `size` consecutive prompts into common prefix and rest.

    At least `least` tokens of a row stay in its rest; empty rows stay empty.

    Args:
      prompts: ids of each row of each group.
      size: rows of a block.
      least: see above.

    Returns:
      (common prefix of each block of each group, rest of each row of each group).
    """
    common, rest = [], []
    for group in prompts:
        rest.append([])
        for at in range(0, len(group), size):
            block = group[at : at + size]
            used = [ids for ids in block if len(ids)] or [()]
            length = min(common_prefix(used[0], ids) for ids in used)
            length = max(0, min(length, min(map(len, used)) - least))
            common.append(used[0][:length])
            rest[-1] += [ids[length:] for ids in block]
    return common, rest


def padded_leads(common: Sequence[Ids], shape: tuple[int, int, int]) -> Leads:
    """Lays leads out as [G, A, M], right-padded."""
    tokens = np.zeros((shape[0] * shape[1], shape[2]), np.int32)
    counts = np.zeros(len(tokens), np.int32)
    for number, ids in enumerate(common):
        tokens[number, : len(ids)], counts[number] = ids, len(ids)
    return Leads(tokens.reshape(shape), counts.reshape(shape[:2]))


def common_prefix(held: Ids, ids: Ids) -> int:
    """Returns how many ids both sequences begin with."""
    if tuple(held) == tuple(ids[: len(held)]):
        return len(held)
    for index, (a, b) in enumerate(zip(held, ids, strict=False)):
        if a != b:
            return index
    return min(len(held), len(ids))
