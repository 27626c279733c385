"""From sampled rows to candidates, with the world's tokenizer."""

import numpy as np
import pytest

from stepjax.propose import CandidateParser
from stepjax.trajectory import CUT_OFF, NO_MARKER, OTHER, VERDICT, Proposal, Refused


def line(codec, text):
    return codec.tokenizer.encode_line(text)


def test_the_parser_makes_distinct_candidates_with_multiplicity(codec):
    eos = codec.tokenizer.eos_id
    parser = CandidateParser(codec)
    one = line(codec, "Step 2: 0*4+2=2\n")
    spelled = [*one, *(line(codec, c)[0] for c in "Step"), *line(codec, " 3")]
    rows = [
        line(codec, "Step 2: 0*4+2=2\nStep 3: "),
        line(codec, "Step 2: 0*4+2=5\nStep 3: "),
        spelled,  # the same step, its stop spelled otherwise
        line(codec, "Step 2: 0*4+2=2\nStep 3: "),
        [*line(codec, "Step 2: 0*4+2=2; \\boxed{2}"), eos],
        line(codec, "Step 2: 0*4+2=2; \\boxed{2}\nStep 3: "),
        [*line(codec, "Step 2: it ends here"), eos],
    ]
    logps = np.arange(7 * 40, dtype=np.float32).reshape(7, 40) / -100
    proposal = parser.proposal(2, rows, [True] * 7, logps)
    assert proposal.malformed == 0
    assert [c.text for c in proposal.candidates] == [
        "Step 2: 0*4+2=2",
        "Step 2: 0*4+2=5",
        "Step 2: 0*4+2=2; \\boxed{2}",
        "Step 2: 0*4+2=2; \\boxed{2}",
        "Step 2: it ends here",
    ]
    assert [c.count for c in proposal.candidates] == [3, 1, 1, 1, 1]
    assert [c.finished for c in proposal.candidates] == [False, False, True, True, True]
    assert proposal.candidates[0].ids == tuple(one) == codec.step("Step 2: 0*4+2=2")
    assert proposal.candidates[2].ids == tuple(rows[4])
    # Ended by a box, not by EOS: cut after the newline that ends the line.
    assert proposal.candidates[3].ids == tuple(rows[5][:-1])
    assert proposal.candidates[3].ids[-1] == codec.newline[0]
    for candidate, row in zip(proposal.candidates, (0, 1, 4, 5, 6), strict=True):
        expected = logps[row, : len(candidate.ids)].astype(np.float64).sum()
        assert candidate.logp == pytest.approx(expected, rel=1e-12)


def test_the_parser_leaves_malformed_rows_out_and_counts_them(codec):
    parser = CandidateParser(codec)
    eos = codec.tokenizer.eos_id
    good = line(codec, "Step 1: 8*7+4=0\nStep 2: ")
    rows = [
        (line(codec, "Step 1: 8*7+4=0"), False),  # cut off by its budget
        (line(codec, "Step 1: 8*7+4=0"), False),
        (line(codec, "Step 2: 8*7+4=0\nStep 3: "), True),  # another marker
        (line(codec, "8*7+4=0\nStep 2: "), True),  # no marker
        (line(codec, "Step 1: \nStep 2: "), True),  # nothing in it
        ([*line(codec, "Step 1:  "), eos], True),
        ([eos], True),
        ([*line(codec, "Step 1: 8*7+4= (-) [[A]]"), eos], True),  # a judgment
        ([*line(codec, "Step 1: [[C]]\nStep 2: ")], True),
        (good, True),
    ]
    proposal = parser.proposal(
        1,
        [r for r, _ in rows],
        [s for _, s in rows],
        np.zeros((len(rows), 20), np.float32),
    )
    assert proposal.malformed == 9
    assert proposal.refused == (
        Refused(CUT_OFF, 2, "Step 1: 8*7+4=0"),
        Refused(NO_MARKER, 3, "Step 2: 8*7+4=0\nStep 3: "),
        Refused(VERDICT, 2, "Step 1: 8*7+4= (-) [[A]]"),
        Refused(OTHER, 2, "Step 1: \nStep 2: "),
    )
    assert [(c.text, c.count) for c in proposal.candidates] == [("Step 1: 8*7+4=0", 1)]
    nothing = parser.proposal(3, [good, good], [True, True], np.zeros((2, 20)))
    refused = Refused(NO_MARKER, 2, "Step 1: 8*7+4=0\nStep 2: ")
    assert nothing == Proposal((), 2, (refused,))
