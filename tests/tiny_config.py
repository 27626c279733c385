"""A run of seconds for several test files: ``--config=tests/tiny_config.py``."""

from stepjax import config


def get_config():
    """Returns the settings of a tiny run: 2 iterations, sampled verdicts, few updates.

    The judge is as good as a coin, which makes many preferences.
    """
    c = config.default()
    c.iterations = 2
    c.data.world = "arithmetic"
    c.data.operations = 2
    c.data.questions = (24, 24)
    c.data.ift_count = 96
    c.data.eft_count = 96
    c.data.heldout_count = 6
    c.data.test_count = 24

    c.model.hidden_size = 16
    c.model.num_kv_heads = 1
    c.model.head_dim = 8
    c.model.intermediate_size = 32
    c.model.embedding_std = 0.5
    c.model.init_std = 0.1

    c.train.row_length = 88
    c.train.checkpoint_every = 10
    c.train.log_every = 5
    half = {"ift": 0.5, "eft": 0.5, "epochs": 0, "batch_size": 16}
    half["optimizer"] = config.optimizer(1e-2, b2=0.98)
    c.sft.phases = (
        config.phase("first", steps=40, **half),
        config.phase("second", steps=60, **half),
    )
    c.search.width = 3
    c.search.temperature = 1.0
    c.search.max_expansions = 8
    c.search.max_step_tokens = 12
    c.search.context_tokens = 64
    c.search.slots = 8
    c.judge.temperature = 1.0
    c.judge.max_tokens = 32
    c.judge.context_tokens = 64
    c.judge.rows = 1
    c.dpo.batch_size = 8
    c.dpo.epochs = 2
    c.dpo.optimizer = config.optimizer(1e-3)
    c.eval.max_tokens = 32
    c.eval.search_count = 8
    return c


def one_phase(steps):
    """Returns phases of SFT with one of so many updates, half of IFT, half of EFT."""
    return (
        config.phase(
            "only",
            ift=0.5,
            eft=0.5,
            epochs=0,
            steps=steps,
            batch_size=8,
            optimizer=config.optimizer(1e-2),
        ),
    )


def changed(**changes):
    """Returns these settings with some changed: setting, dots as "__" → value."""
    c = get_config()
    values = {name.replace("__", "."): value for name, value in changes.items()}
    c.update_from_flattened_dict(values)
    return c
