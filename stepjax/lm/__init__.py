"""Language-model plumbing: tokenizers, stop tables, models and their training."""

import importlib.util

# Some of the packages of the extra `train`; nearly every file of stepjax comes here
# before it asks for one of them, so that this sentence is what a person sees.
_NEEDED = ("flax", "ml_collections", "optax", "orbax", "transformers")
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    raise ModuleNotFoundError(
        f"everything in stepjax but its losses needs the extra `train`, and "
        f"{', '.join(_missing)} {'are' if len(_missing) > 1 else 'is'} not installed: "
        "pip install -e '.[train]' in the checkout of stepjax.",
        name=_missing[0],
    )
