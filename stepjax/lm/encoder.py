"""Text to token ids, with names of special tokens in the data kept as plain text.

Tokenizers turn the text "<|im_end|>" into the control id of that name wherever it
stands: in the markup of a prompt, which is right, and in a problem that a stranger
wrote, which is not. Here a control id comes only from text that `Encoder.mark` has
gone over. For this, a copy of the tokenizer knows each special token by another name,
which holds a random number of 128 bits, so no text of the data can hold it. All else
of the copy is the same, so texts without names of special tokens get the same ids.
"""

import json
import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

import tokenizers


class Encoder(NamedTuple):
    """Encodes text; make one with `make`.

    Attributes:
      tokenizer: the copy that knows special tokens by their marks.
      marks: name of a special token → its mark.
      ids: id in the copy → id in the original tokenizer, where the two differ.
      unknown: id, in the original tokenizer, of characters that its vocabulary does not
        hold; None where it has no such id.
      names: finds the names in a text; the longest one where several begin.
    """

    tokenizer: tokenizers.Tokenizer
    marks: dict[str, str]
    ids: dict[int, int]
    unknown: int | None
    names: re.Pattern[str]

    def mark(self, text: str) -> str:
        """Returns the text with marks for names, which are encoded as control ids."""
        if not self.marks:
            return text
        return self.names.sub(lambda found: self.marks[found[0]], text)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text. Marks become control ids; nothing is added."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.ids.get(token, token) for token in ids] if self.ids else ids


def make(backend: tokenizers.Tokenizer, control: Mapping[str, int]) -> Encoder:
    """Returns an encoder with the ids of a tokenizer.

    Args:
      backend: the tokenizer; it is copied and not changed.
      control: name of each special token, as `backend` has it → its id.
    """
    key = secrets.token_hex(16)
    marks = {name: f"<|{key}:{token}|>" for name, token in control.items()}
    rules = json.loads(backend.to_str())
    rules |= {"truncation": None, "padding": None, "post_processor": None}
    unknown = rules["model"].get("unk_id")
    if rules["model"].get("unk_token"):
        unknown = backend.token_to_id(rules["model"]["unk_token"])
    _rename(rules["model"], marks)
    added = rules["added_tokens"]
    for token in added:
        token["content"] = marks.get(token["content"], token["content"])
    copy = tokenizers.Tokenizer.from_str(json.dumps(rules))
    pairs = ((copy.token_to_id(token["content"]), token["id"]) for token in added)
    return Encoder(
        tokenizer=copy,
        marks=marks,
        ids={own: token for own, token in pairs if own != token},
        unknown=unknown,
        names=re.compile("|".join(map(re.escape, sorted(marks, key=len)[::-1]))),
    )


def _rename(model: dict, marks: Mapping[str, str]) -> None:
    """Gives special tokens in a model's vocabulary their marks as names, in place.

    Without it, a unigram model would still find "</s>" in a text, and so would BPE by
    its merges.
    """
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {
            marks.get(piece, piece): token for piece, token in vocabulary.items()
        }
    else:
        model["vocab"] = [
            [marks.get(piece, piece), score] for piece, score in vocabulary
        ]
    if "merges" in model:
        model["merges"] = [
            (left, right)
            for left, right in model["merges"]
            if not marks.keys() & {left, right, left + right}
        ]
    if model.get("unk_token") in marks:
        model["unk_token"] = marks[model["unk_token"]]
