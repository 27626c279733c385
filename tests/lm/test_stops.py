"""Stop automaton against plain string search."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepjax.lm.stops import compile_stops, cut_at_stop

# Few bytes, so that stops occur often; "é" is two bytes, which tokens may part.
BYTES = (b"a", b"b", b"\n", b"\xc3", b"\xa9")
pieces = st.lists(st.sampled_from(BYTES), max_size=4).map(b"".join)
vocabularies = st.lists(pieces, min_size=2, max_size=6)
# Strings of two letters often hold one another.
stop_lists = st.sampled_from(["ab", "ab\né"]).flatmap(
    lambda letters: st.lists(st.text(letters, min_size=1, max_size=4), max_size=3)
)


@st.composite
def sequences(draw):
    """A vocabulary and token ids of it, at least as many as fill a stop string."""
    vocabulary = draw(vocabularies)
    ids = draw(st.lists(st.integers(0, len(vocabulary) - 1), max_size=12))
    return vocabulary, ids


def follow(table, ids):
    state, stopped = 0, []
    for token in ids:
        state = table[state, token]
        stopped.append(bool(state == len(table) - 1))
    return stopped


@settings(deadline=None, max_examples=300)
@given(sequences(), stop_lists, st.data())
def test_stops_exactly_when_the_bytes_hold_a_stop_string(sequence, stops, data):
    vocabulary, ids = sequence
    stop_ids = data.draw(st.lists(st.integers(0, len(vocabulary) - 1), max_size=1))
    table = compile_stops(vocabulary, stops, stop_ids)
    assert table.dtype == np.int32
    assert table.shape[1] == len(vocabulary)
    assert table.min() >= 0 and table.max() < len(table)
    np.testing.assert_array_equal(table[-1], len(table) - 1)

    expected = []
    for end in range(1, len(ids) + 1):
        text = b"".join(vocabulary[token] for token in ids[:end])
        by_string = any(stop.encode() in text for stop in stops)
        expected.append(by_string or any(token in stop_ids for token in ids[:end]))
    assert follow(table, ids) == expected


def reference_cut(vocabulary, ids, stops):
    """Reads byte by byte until some stop string ends, then counts tokens one by one."""
    text = b"".join(vocabulary[token] for token in ids)
    for end in range(1, len(text) + 1):
        lengths = [len(s.encode()) for s in stops if text[:end].endswith(s.encode())]
        if lengths:
            border = end - max(lengths) + 1
            kept, at = 0, 0
            for token in ids:
                at += len(vocabulary[token])
                if at > border:
                    break
                kept += 1
            return kept
    return None


@settings(deadline=None, max_examples=300)
@given(sequences(), stop_lists)
def test_cut_agrees_with_a_search_byte_by_byte(sequence, stops):
    vocabulary, ids = sequence
    cut = cut_at_stop(vocabulary, ids, stops)
    assert cut == reference_cut(vocabulary, ids, stops)
    # The automaton and the cut see the same stops.
    stopped = follow(compile_stops(vocabulary, stops, []), ids)
    assert (cut is not None) == any(stopped)


@pytest.mark.parametrize(
    "tokens",
    [
        [b"x=0", b"\n", b"Step", b" ", b"2", b":"],
        [b"x=0", b"\nSt", b"ep 2:"],
        [b"x=0\nStep 2: y"],
        [b"x", b"=", b"0\n", b"S", b"t", b"e", b"p", b" 2"],
    ],
)
def test_a_step_marker_is_found_however_tokens_straddle_it(tokens):
    stops = [f"\nStep {digit}" for digit in range(1, 10)]
    table = compile_stops(tokens, stops, [])
    states = follow(table, range(len(tokens)))
    completing = next(
        index
        for index in range(len(tokens))
        if b"\nStep 2" in b"".join(tokens[: index + 1])
    )
    assert states == [index >= completing for index in range(len(tokens))]
    # "\nStep " is common to the nine strings: 6 states, and the two special ones.
    assert table.shape == (8, len(tokens))


def test_cut_keeps_the_newline_with_the_step():
    vocabulary = [
        b"x=0",
        b"\n",
        b"Step",
        b" 2",
        b".\n",
        b"\n\n",
        b"0\nSt",
        b"ep 2",
        b"",
    ]
    stops = ["\nStep 2", "\nStep 3"]
    assert cut_at_stop(vocabulary, [0, 1, 2, 3], stops) == 2
    assert cut_at_stop(vocabulary, [0, 4, 2, 3], stops) == 2
    assert cut_at_stop(vocabulary, [0, 5, 2, 3], stops) == 2
    assert cut_at_stop(vocabulary, [0, 6, 7], stops) == 1  # the newline goes, too
    assert cut_at_stop(vocabulary, [0, 1, 2], stops) is None
    assert cut_at_stop(vocabulary, [], stops) is None
    assert cut_at_stop(vocabulary, np.array([0, 1, 2, 3, 8]), stops) == 2


def test_of_stop_strings_that_hold_one_another_the_first_completed_counts():
    vocabulary, ids = [b"a", b"b", b"c", b"d"], [3, 0, 1, 2, 3]
    table = compile_stops(vocabulary, ["abcd", "bc"], [])
    assert follow(table, ids) == [False, False, False, True, True]
    assert cut_at_stop(vocabulary, ids, ["abcd", "bc"]) == 3
    assert follow(compile_stops(vocabulary, ["abc", "b"], []), [0, 1]) == [False, True]
    # Completed by the same byte: the one that begins earlier.
    assert cut_at_stop(vocabulary, ids, ["c", "abc", "bc"]) == 2


def test_no_stop_strings_leave_two_states_and_the_stop_ids():
    table = compile_stops([b"a", b"bb", b"", b"c"], [], [2, 3])
    np.testing.assert_array_equal(table, [[0, 0, 1, 1], [1, 1, 1, 1]])


def test_special_tokens_without_bytes_keep_the_history():
    table = compile_stops([b"a", b"b", b""], ["ab"], [])
    assert follow(table, [0, 2, 1]) == [False, False, True]
    assert follow(table, [0, 0, 1]) == [False, False, True]
    assert follow(table, [1, 0, 2]) == [False, False, False]


def test_a_large_vocabulary_is_compiled_quickly():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 12, 152_000)
    blob = rng.integers(0, 256, lengths.sum(), np.uint8).tobytes()
    ends = np.cumsum(lengths)
    vocabulary = [
        blob[end - length : end] for end, length in zip(ends, lengths, strict=True)
    ]
    vocabulary[7], vocabulary[9] = b".\n", b"Step 3: it"
    begin = time.process_time()
    table = compile_stops(
        vocabulary, [f"\nStep {digit}" for digit in range(1, 10)], [5]
    )
    assert time.process_time() - begin < 2
    assert table.shape == (8, 152_000)
    assert follow(table, [9, 7, 9, 7]) == [False, False, True, True]
    assert follow(table, [7, 5]) == [False, True]


@pytest.mark.parametrize("call", [compile_stops, cut_at_stop])
def test_bad_stop_strings_are_refused(call):
    arguments = {compile_stops: (["a", ""], []), cut_at_stop: ([0], ["a", ""])}[call]
    with pytest.raises(ValueError, match="stop strings is empty"):
        call([b"a"], *arguments)
    arguments = {compile_stops: ("ab", []), cut_at_stop: ([0], "ab")}[call]
    with pytest.raises(ValueError, match="Wrap it in a tuple"):
        call([b"a"], *arguments)


@pytest.mark.parametrize("stop_id", [-1, 2])
def test_stop_ids_outside_of_the_vocabulary_are_refused(stop_id):
    with pytest.raises(ValueError, match=f"stop id {stop_id} .* 0 <= id < 2"):
        compile_stops([b"a", b"b"], ["a"], [0, stop_id])
