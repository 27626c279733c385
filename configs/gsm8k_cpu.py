"""Every stage on real text, on a CPU, in 13 CPU minutes; its accuracy is near zero.

    stepjax run --config=configs/gsm8k_cpu.py:DATA --workdir=/tmp/gsm8k \\
        --config.tokenizer=TOKENIZER

DATA is a folder with gsm8k/train.jsonl and gsm8k/test.jsonl (openai/grade-school-math)
and prm800k/phase1_train_rebuilt.jsonl (PRM800K, one labelled solution per line).
TOKENIZER is a Hugging Face tokenizer.json or its folder, for example Llama 2's.

M0 is a random model of 4.5 million parameters. It is trained here on GSM8K's training
solutions, each line as a step, and on pairs of PRM800K's steps, one rated +1 and one
rated -1. Result: 0 of 64 test problems solved, a judge at chance, and 24 pairs
from 16 questions. So small a model does not solve these problems; the run shows that
every stage works on real text with a real tokenizer.
"""

from stepjax import config


def get_config(data: str = "data"):
    """Returns the settings that differ from the default.

    Args:
      data: folder of the files named above.
    """
    c = config.default()
    c.iterations = 1
    c.data.ift = f"{data}/gsm8k/train.jsonl"
    c.data.ift_format = "gsm8k"
    c.data.ift_count = 6000  # the other 1473 rows are questions
    c.data.eft = f"{data}/prm800k/phase1_train_rebuilt.jsonl"
    c.data.eft_format = "prm800k"
    c.data.heldout_count = 30
    c.data.question_file = f"{data}/gsm8k/train.jsonl"
    c.data.question_format = "gsm8k"
    c.data.questions = (16,)
    c.data.test = f"{data}/gsm8k/test.jsonl"
    c.data.test_format = "gsm8k"
    c.data.test_count = 64

    c.model.hidden_size = 128
    c.model.num_layers = 2
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.head_dim = 32
    c.model.intermediate_size = 384
    c.model.tie_embeddings = True

    c.train.row_length = 512
    c.train.checkpoint_every = 100
    rate = {"b2": 0.98, "weight_decay": 0.1}
    c.sft.phases = (
        config.phase(
            name="solutions",
            eft=0.0,
            epochs=0,
            steps=300,
            batch_size=8,
            optimizer=config.optimizer(3e-3, "cosine", warmup_steps=20, **rate),
        ),
        config.phase(
            name="mixed",
            epochs=0,
            steps=40,
            batch_size=8,
            optimizer=config.optimizer(5e-4, "cosine", **rate),
        ),
    )

    c.search.width = 3
    c.search.temperature = 0.7
    c.search.max_expansions = 6
    c.search.max_step_tokens = 64
    c.search.context_tokens = 768
    c.search.slots = 8
    c.search.on_tie = "append"  # such a weak judge often has no preference
    c.judge.mode = "logprob"  # PRM800K's ratings come without explanations
    # So small a judge knows the position only, so that both orders would always tie.
    c.judge.score = "single"
    c.judge.context_tokens = 768
    c.judge.rows = 6
    c.dpo.batch_size = 8
    c.dpo.optimizer = config.optimizer(1e-4)
    c.eval.max_tokens = 160
    c.eval.search_count = 8
    return c
