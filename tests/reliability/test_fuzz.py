"""A thousand fuzzed inputs, made by seed: each is taken, or refused in one sentence.

`fuzz.py` says what may happen; the generators beside it know whether an input is wrong.
To try one of them again, call `case` of its generator with the number in the message.
"""

import json
import os
import pathlib

import fuzz
import fuzz_rows

KINDS = {"rows": (fuzz_rows.case, 400)}


def cases(folder, share):
    """Every kind's cases, of as many as `share` of its count."""
    for kind, (case, count) in KINDS.items():
        for seed in range(round(count * share)):
            own = folder / f"{kind}-{seed}"
            own.mkdir()
            yield kind, case(seed, own)


def check(folder, share):
    faults, figures = fuzz.run(cases(folder, share))
    if "STEPJAX_FIGURES" in os.environ:
        file = pathlib.Path(os.environ["STEPJAX_FIGURES"]) / "fuzz.json"
        file.write_text(json.dumps({"share": share, "kinds": figures}, indent=1))
    assert faults == []
