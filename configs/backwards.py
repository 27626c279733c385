"""Last-digit programs backwards on a laptop CPU: nothing is planted, M1 → … → M4.

    stepjax run --config=configs/backwards.py --workdir=DIR

What the world is, and how little the loop gains in it so far: docs/backwards.md.
"""

from stepjax import config


def get_config():
    """Returns the settings that differ from the default."""
    c = config.default()
    c.iterations = 3
    c.data.world = "backwards"
    c.data.questions = (3000, 3000, 3000)
    c.data.taught_results = 6
    c.data.unseen_results = 1
    c.data.ift_count = 2000
    c.data.eft_count = 5000
    c.data.heldout_count = 300
    c.data.test_count = 500

    c.model.hidden_size = 64
    c.model.num_layers = 3
    c.model.num_heads = 4
    c.model.num_kv_heads = 4
    c.model.head_dim = 16
    c.model.intermediate_size = 192
    c.model.embedding_std = 0.5
    c.model.init_std = 0.05

    c.train.row_length = 144
    c.train.checkpoint_every = 500
    rate = {"b2": 0.98, "weight_decay": 0.05}
    c.sft.verdict_weight = 3.0
    c.sft.phases = (
        config.phase(
            name="judge",
            ift=0.0,
            eft=1.0,
            epochs=0,
            steps=2400,
            stop_loss=0.02,
            optimizer=config.optimizer(2e-3, warmup_steps=50, **rate),
        ),
        config.phase(
            name="mixed",
            ift=0.6,
            eft=0.4,
            epochs=0,
            steps=600,
            stop_loss=0.03,  # before M1 is sure of steps that it does not know
            optimizer=config.optimizer(4e-3, "cosine", **rate),
        ),
    )

    c.search.width = 8
    c.search.temperature = 1.3
    c.search.top_p = 1.0
    c.search.on_tie = "append"  # a sure model's candidates all agree
    c.search.max_step_tokens = 12
    c.search.context_tokens = 96
    c.search.slots = 128
    c.judge.score = "consistent"
    c.judge.max_tokens = 30
    c.srlm.max_tokens = 50
    c.judge.context_tokens = 96
    c.judge.rows = 2
    c.pairs.best_beats_all = True

    c.dpo.beta = 1.0
    c.dpo.nll_weight = 1.0
    c.dpo.batch_size = 8
    c.dpo.optimizer = config.optimizer(1e-4, warmup_steps=10, b2=0.98)

    c.eval.max_tokens = 48
    c.eval.search_count = 0
    return c
