"""Your own model and your own data.

    stepjax run --config=configs/own_model.py:WEIGHTS,DATA --workdir=DIR

WEIGHTS is a Hugging Face folder or a GGUF file of a Qwen2, Qwen2.5, Llama 2, Llama 3 or
SmolLM2. DATA is a folder with the files ift, eft, questions and test, each as .jsonl,
.json, .csv, .tsv or .parquet; docs/data.md has a row of each. tests/own_data is such a
folder, with a handful of rows: copy it, and put your own rows in their place.

The settings below are those that people change first, for a model of 0.1 to 2 billion
parameters on one host. `stepjax/config.py` explains every setting.
"""

import pathlib

from stepjax import config


def get_config(names: str = "model,data"):
    """Returns the settings that differ from the default.

    Args:
      names: WEIGHTS,DATA.
    """
    weights, _, data = names.rpartition(",")
    if not weights or not data:
        raise ValueError(f"{names!r} after the colon; expected WEIGHTS,DATA.")
    c = config.default()

    # The model.
    c.model.init = _init(weights)
    c.model.dtype = "float32"  # "bfloat16" on a GPU or a TPU
    c.model.remat = "full"  # less memory; "none" is faster
    c.prompts.chat = "none"  # "template": the chat template of an instruct model

    # The data.
    c.data.ift = _file(data, "ift")
    c.data.eft = _file(data, "eft")
    c.data.question_file = _file(data, "questions")
    c.data.test = _file(data, "test")
    c.data.heldout_count = 1  # EFT problems that measure the judge; better 50 or more
    c.data.test_count = 0  # test problems, 0 all
    c.iterations = 1  # M1 → M2; the paper: 3
    c.data.questions = ()  # all of the file, in equal parts per iteration

    # Tokens: longer rows are left out, and counted. Longer steps are cut off.
    c.train.row_length = 1024
    c.search.max_step_tokens = 64
    c.search.context_tokens = 1024
    c.judge.max_tokens = 96
    c.judge.context_tokens = 1280
    c.eval.max_tokens = 256

    # M0 → M1. A handful of rows wants many epochs; hundreds of rows want 2 or 3. Models
    # of a billion parameters and more want a lower rate, such as 1e-5.
    c.sft.phases = (
        config.phase(
            epochs=8,
            batch_size=4,
            optimizer=config.optimizer(2e-4, "cosine", warmup_steps=5, b2=0.98),
        ),
    )

    # Mi searches its questions: samples `width` candidates per step and compares them.
    c.search.width = 4
    c.search.max_expansions = 8  # per problem, refused steps and ties included
    c.search.temperature = 0.8
    c.search.slots = 8  # problems at the same time; fewer take less memory
    c.judge.by = "self"  # or "module:function", your own judge; see docs/data.md

    # Mi → M(i+1).
    c.dpo.beta = 0.1
    c.dpo.batch_size = 8
    c.dpo.optimizer = config.optimizer(1e-6, warmup_steps=5, b2=0.98)
    c.eval.search_count = 20  # test problems that are also searched; 0 all
    return c


def _init(weights: str) -> str:
    """Returns `model.init` for a folder, a GGUF file, or a name with its kind."""
    if weights.startswith(("hf:", "gguf:")):
        return weights
    return f"{'gguf' if weights.endswith('.gguf') else 'hf'}:{weights}"


def _file(folder: str, name: str) -> str:
    """Returns the path of a file in a folder, whichever of its endings it has."""
    endings = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
    paths = [pathlib.Path(folder) / f"{name}{ending}" for ending in endings]
    return str(next((path for path in paths if path.exists()), paths[0]))
