"""Special tokens that a tokenizer's settings name and its vocabulary does not have.

transformers gives such a token a new id without a word, and no model has learned it.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast


def check(backend: PreTrainedTokenizerFast, file: Path, path: Path) -> None:
    """Raises ValueError for a special token that is in no file of the vocabulary.

    Args:
      backend: the tokenizer as transformers has loaded it.
      file: its tokenizer.json, which may be absent.
      path: what was loaded, for people.
    """
    if not file.is_file():
        return
    # A class of transformers may name further tokens, which nothing uses.
    added = backend.backend_tokenizer.get_added_tokens_decoder().values()
    asked = {backend.eos_token, *_named(file.parent)}
    asked &= {token.content for token in added}
    held = json.loads(file.read_text("utf-8"))
    known = {token.get("content") for token in held.get("added_tokens") or ()}
    asked -= known | set(_vocabulary(held.get("model") or {}))
    if asked:
        stated = _stated_ids(file.parent)
        ids = backend.convert_tokens_to_ids
        asked = {name for name in asked if stated.get(name) != ids(name)}
    if asked:
        raise ValueError(
            f"{path}: the special token {min(asked)!r} is not in the vocabulary; "
            "expected a token that tokenizer.json has. Correct tokenizer_config.json, "
            "or take the files that belong together."
        )


def _named(folder: Path) -> set[str]:
    """Returns the special tokens that the files beside a vocabulary name."""
    found = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            stated = json.loads((folder / name).read_text("utf-8"))
            for key, value in stated.items():
                if key.endswith("_token") and value:
                    text = value.get("content") if isinstance(value, dict) else value
                    found |= {text} if isinstance(text, str) else set()
    return found


def _stated_ids(folder: Path) -> dict[str, int]:
    """Returns name → id of the added tokens that files beside a vocabulary state."""
    found = {}
    if (folder / "added_tokens.json").is_file():
        found |= json.loads((folder / "added_tokens.json").read_text("utf-8"))
    if (folder / "tokenizer_config.json").is_file():
        stated = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        for id, token in (stated.get("added_tokens_decoder") or {}).items():
            found[token.get("content")] = int(id)
    return found


def _vocabulary(model: dict) -> list[str]:
    """Returns the tokens of the model in a tokenizer.json."""
    vocab = model.get("vocab") or ()
    return list(vocab) if isinstance(vocab, dict) else [piece for piece, _ in vocab]
