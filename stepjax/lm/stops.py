r"""Stop strings as an automaton over token ids.

A step ends at a *string* (the next step marker, a verdict) and the borders of
tokens do not respect strings: ``"\nStep 2"`` may come as ``["0\n", "St", "ep 2:"]``.
``compile_stops`` turns a set of stop strings into one table of next states, so that
a jitted sampling loop only has to follow ``state = table[state, token]``.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def compile_stops(
    token_bytes: Sequence[bytes],
    stop_strings: Iterable[str],
    stop_ids: Iterable[int],
) -> np.ndarray:
    r"""Compiles stop strings and stop ids into one transition table.

    The states are those of an Aho-Corasick automaton over *bytes*, lifted to whole
    tokens. Tokens without bytes (special tokens) leave the state as it is.

    Args:
      token_bytes: the exact bytes of each token id; its length is the vocabulary.
      stop_strings: sampling stops once the bytes of the sampled tokens contain any of
        these strings, also where a string ends within a token. May be empty.
      stop_ids: token ids that stop at once (end-of-sequence).

    Returns:
      int32 ``[states, vocabulary]``: ``table[state, token]`` is the next state.
      State 0 is the start (no history). The last state means "stopped" and is
      absorbing: all entries of the last row are the last state itself.

    Raises:
      ValueError: for an empty stop string or a stop id outside of the vocabulary.
    """
    byte_table = _byte_automaton(_encoded(stop_strings))
    stopped = len(byte_table) - 1
    vocabulary = len(token_bytes)
    lengths = np.fromiter(map(len, token_bytes), np.int64, vocabulary)
    flat = np.frombuffer(b"".join(token_bytes), np.uint8)
    starts = np.cumsum(lengths) - lengths

    # With the longest tokens first, those with a byte at an offset come first.
    order = np.argsort(-lengths, kind="stable")
    states = np.tile(np.arange(stopped + 1, dtype=np.int32)[:, None], (1, vocabulary))
    for offset in range(int(lengths.max(initial=0))):
        count = int(np.count_nonzero(lengths > offset))
        byte = flat[starts[order[:count]] + offset]  # [count]
        states[:, :count] = byte_table[states[:, :count], byte]

    table = np.empty_like(states)
    table[:, order] = states
    for stop_id in stop_ids:
        if not 0 <= stop_id < vocabulary:
            raise ValueError(
                f"stop id {stop_id} is outside of the vocabulary; expected "
                f"0 <= id < {vocabulary}. Take the ids from the same tokenizer."
            )
        table[:, stop_id] = stopped
    return table


def cut_at_stop(
    token_bytes: Sequence[bytes],
    ids: Sequence[int],
    stop_strings: Iterable[str],
) -> int | None:
    r"""Counts the leading ids that stay when a sequence is cut at its stop string.

    The stop string that is *completed* first counts; if two are completed by the same
    byte, the one that begins earlier. Let it begin at byte b of the tokens' bytes. An
    id stays if all its bytes come before b + 1: of ``"\nStep 2"``, the newline stays
    with the step that it ends. A token that crosses this border is cut, and so are all
    tokens after it.

    Args:
      token_bytes: the exact bytes of each token id.
      ids: the sampled token ids.
      stop_strings: the strings to look for. May be empty.

    Returns:
      The number of leading ids to keep, or None when no stop string occurs.

    Raises:
      ValueError: for an empty stop string.
    """
    pieces = [token_bytes[token] for token in ids]
    text = b"".join(pieces)
    completed = [
        (begin + len(stop), begin)
        for stop in _encoded(stop_strings)
        if (begin := text.find(stop)) >= 0
    ]
    if not completed:
        return None
    _, begin = min(completed)
    ends = np.cumsum([len(piece) for piece in pieces])
    return int(np.searchsorted(ends, begin + 1, side="right"))


def _encoded(stop_strings: Iterable[str]) -> list[bytes]:
    """Returns the distinct stop strings as UTF-8."""
    if isinstance(stop_strings, str):
        raise ValueError(
            f"stop strings are the one string {stop_strings!r}; expected a sequence "
            "of strings. Wrap it in a tuple."
        )
    stops = sorted({stop.encode("utf-8") for stop in stop_strings})
    if b"" in stops:
        raise ValueError(
            "one of the stop strings is empty; expected at least one character, since "
            "an empty string would stop before the first token. Leave it out."
        )
    return stops


def _byte_automaton(stops: list[bytes]) -> np.ndarray:
    """Returns the Aho-Corasick automaton, int32 [states, 256]; the last state stops."""
    # A stop string that contains another one is never completed before it, so it is
    # left out. Then every stop is a leaf of the tree, and no inner state is a stop.
    stops = [
        stop
        for stop in stops
        if not any(other != stop and other in stop for other in stops)
    ]
    prefixes = sorted(
        {stop[:end] for stop in stops for end in range(len(stop))}, key=len
    )
    states = {prefix: state for state, prefix in enumerate(prefixes or [b""])}
    stopped = len(states)
    targets = states | dict.fromkeys(stops, stopped)

    table = np.zeros((stopped + 1, 256), np.int32)
    table[stopped] = stopped
    for prefix, state in states.items():  # from short to long: suffixes come before
        if prefix:
            suffix = next(
                prefix[begin:]
                for begin in range(1, len(prefix) + 1)
                if prefix[begin:] in states
            )
            table[state] = table[states[suffix]]
        for byte in range(256):
            target = targets.get(prefix + bytes([byte]))
            if target is not None:
                table[state, byte] = target
    return table
