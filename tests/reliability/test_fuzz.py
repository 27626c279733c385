"""A thousand fuzzed inputs, made by seed: each is taken, or refused in one sentence.

`fuzz.py` says what may happen; the generators beside it know whether an input is wrong.
To try one of them again, call its generator with the seed in the message. With
STEPJAX_FIGURES=FOLDER the figures are written to FOLDER/fuzz.json.
"""

import json
import os
import pathlib

import fuzz
import fuzz_commands
import fuzz_folders
import fuzz_rows
import fuzz_settings
import fuzz_texts
import pytest

# Kind → (generator: seed and a new folder to a case, how many of a thousand).
KINDS = {
    "rows": (fuzz_rows.case, 400),
    "settings": (fuzz_settings.case, 220),
    "Hugging Face folders": (fuzz_folders.folder_case, 130),
    "GGUF files": (fuzz_folders.gguf_case, 60),
    "tokenizers": (fuzz_texts.tokenizer_case, 60),
    "special tokens": (fuzz_texts.special_case, 40),
    "answers": (fuzz_texts.answer_case, 50),
    "command lines": (fuzz_commands.case, 40),
}


def tried(folder, per_thousand, first=0):
    """Tries so many of a thousand cases of each kind, with seeds from `first` on.

    Returns:
      What is wrong, and figures about each kind.
    """

    def cases():
        for kind, (case, count) in KINDS.items():
            for seed in range(first, first + max(1, count * per_thousand // 1000)):
                own = folder / kind.replace(" ", "_") / str(seed)
                own.mkdir(parents=True)
                yield f"{kind}, seed {seed}", case(seed, own)

    return fuzz.run(cases())


def test_some_fuzzed_inputs_end_in_success_or_one_sentence(tmp_path):
    faults, figures = tried(tmp_path, 60, first=5000)
    assert faults == []
    assert sum(counts["tried"] for counts in figures.values()) > 50


@pytest.mark.slow
def test_a_thousand_fuzzed_inputs_end_in_success_or_one_sentence(tmp_path):
    faults, figures = tried(tmp_path, 1000)
    if "STEPJAX_FIGURES" in os.environ:
        file = pathlib.Path(os.environ["STEPJAX_FIGURES"]) / "fuzz.json"
        file.write_text(json.dumps(figures, indent=1))
    assert faults == []
    assert sum(counts["tried"] for counts in figures.values()) == 1000


def test_an_input_that_is_wrongly_taken_is_noticed():
    def nothing():
        pass

    def refuses():
        raise ValueError("it is 5; expected 6.")

    def mumbles():
        raise ValueError("no")

    def breaks():
        raise KeyError("x")

    for wrong, attempt, said in [
        (True, nothing, "wrongly accepted"),
        (False, nothing, ""),
        (None, nothing, ""),
        (True, refuses, ""),
        (False, refuses, "wrongly refused"),
        (True, mumbles, "does not say what was expected"),
        (None, breaks, "traceback: KeyError"),
    ]:
        found = fuzz.fault(fuzz.Case("made up", wrong, attempt))
        assert found.startswith(said) and bool(found) == bool(said)
    unnamed = fuzz.fault(fuzz.Case("made up", True, refuses, ("rows.jsonl",)))
    assert unnamed.startswith("does not name ['rows.jsonl']")
