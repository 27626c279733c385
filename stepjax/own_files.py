"""What is wrong in a Python file of the person who runs stepjax, in one sentence.

Config files and own functions are such files. What is meant by a mistyped name is told
here for all that a person types, and whether a text can be written as UTF-8. Only the
standard library is imported.
"""

import difflib
import pathlib
import re
import traceback
from collections.abc import Iterable

# Packages of the extras in pyproject.toml, by the names under which they are imported.
_TRAIN = (
    *("absl", "etils", "flax", "google", "huggingface_hub", "jax", "jaxlib", "jinja2"),
    *("matplotlib", "ml_collections", "mpmath", "numpy", "optax", "orbax"),
    *("rich", "safetensors", "scipy", "sentencepiece", "tensorboardX"),
    "transformers",
)
_DATA = (
    "array_record",
    "grain",
    "httpx2",
    "pyarrow",
    "tenacity",
    "tensorflow_datasets",
)
EXTRAS = {
    **dict.fromkeys(_TRAIN, "train"),
    **dict.fromkeys(_DATA, "data"),
    "gguf": "gguf",
    **dict.fromkeys(("sklearn", "threadpoolctl"), "report"),
    "gcsfs": "tpu",
    "wandb": "wandb",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "True or False",
    "tuple": "a tuple, such as (1, 2)",
}


def kind(name: str) -> str:
    """Returns the name of a Python type in words, for messages."""
    return _KINDS.get(name, f"a {name.rpartition('.')[2]}")


def did_you_mean(word: str, known: Iterable[str], at: str = "") -> str:
    """Returns ' (did you mean "run"?)' for a mistyped word, or "".

    Args:
      word: as it was typed.
      known: the words that there are.
      at: what to write in front of the right word.
    """
    found = difflib.get_close_matches(word.lower(), list(known), 1)
    return f' (did you mean "{at}{found[0]}"?)' if found else ""


def missing_package(error: ImportError) -> str:
    """Returns a sentence about a package that is not installed.

    Args:
      error: of an import.

    Returns:
      The sentence; "" when the error is another one, or a module of stepjax is missing.
    """
    wrapped = error.__cause__  # fsspec: "Install s3fs to access S3"
    said = str(error)
    if not error.name and isinstance(wrapped, ModuleNotFoundError):
        error = wrapped
    root = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or root in ("", "stepjax"):
        return ""
    if root in EXTRAS:
        return (
            f"needs the Python package {root!r}, which is not installed; install the "
            f"extra that brings it: pip install -e '.[{EXTRAS[root]}]' in the checkout "
            "of stepjax."
        )
    if error is wrapped:
        return (
            f"{said}: there is no Python package {root!r}; expected it to be installed "
            f"(pip install {root})."
        )
    frames = traceback.extract_tb(error.__traceback__)
    frames = [f for f in frames if not f.filename.startswith("<frozen")]
    place = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
    return (
        f"{place}imports {error.name!r}, and there is no such module; expected it to "
        f"be installed (pip install {root}), or to be a file on Python's path."
    )


def sentence(error: BaseException, path: str, expected: str) -> str:
    """Returns "FILE, line N: reason; expected ..." for an error in a person's file.

    Args:
      error: that was raised while the file was read, imported or called.
      path: of the file.
      expected: what to say where the error itself does not tell what is expected.
    """
    if isinstance(error, SyntaxError):
        where = f"{error.filename or path}, line {error.lineno}"
        return f"{where}: this is no Python ({error.msg}); expected {expected}."
    if isinstance(error, UnicodeDecodeError):
        return f"{path}: this is no text in UTF-8 ({error}); expected {expected}."
    if isinstance(error, ImportError):
        missing = missing_package(error)
        if missing.startswith("needs"):
            return f"{_where(error, path)}: {missing}"
        if missing:
            return missing
    known = _of_settings(error)
    if known:
        return f"{_where(error, path)}: {known}."
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and "; expected" in text:
        return f"{_where(error, path)}: {text}"
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{_where(error, path)}: {reason.rstrip('.')}; expected {expected}."


def _where(error: BaseException, path: str) -> str:
    """Returns the file, and its line that the error went through last."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).absolute() == pathlib.Path(path).absolute()
    ]
    return f"{path}, line {lines[-1]}" if lines else path


def _of_settings(error: BaseException) -> str:
    """Returns what is wrong with a setting; "" for an error of another kind."""
    text = str(error)
    unknown = re.search(r'Key \\*"(\w+)\\*" does not exist', text)
    near = re.search(r'Did you mean \\*"(\w+)\\*" instead', text)
    if unknown:
        hint = f' (did you mean "{near[1]}"?)' if near else ""
        return (
            f"there is no setting {unknown[1]!r} here; expected one that `stepjax "
            f"config` lists{hint}"
        )
    wrong = re.search(
        r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type "
        r"<class '([\w.]+)'> and cannot be casted to type <class '([\w.]+)'>",
        text,
        re.S,
    )
    if wrong:
        name, value, found, wanted = wrong.groups()
        value = " ".join(value.split())
        value = f"{value[:60]}..." if len(value) > 60 else value
        return (
            f"setting {name!r} cannot be {value} ({kind(found)}); expected "
            f"{kind(wanted)}"
        )
    return ""


def in_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text; it cannot hold half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
