"""The training step of tunix's DPOTrainer on token ids: run_tunix.py WEIGHTS single.

The weights are random, since their values do not change the time.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import work
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.sft.dpo import dpo_trainer


def make_model():
    """Returns a random Qwen2 of the benchmark's shape."""
    shape = work.MODEL
    config = qwen2.ModelConfig(
        num_layers=shape["num_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["num_kv_heads"],
        rope_theta=int(shape["rope_theta"]),
        norm_eps=1e-6,
        use_tied_embedding=True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    return qwen2.Qwen2(config, rngs=nnx.Rngs(0))


def main(directory: str, layout: str) -> None:
    """Trains; each batch waits for its turn, so a step lasts from batch to batch."""
    assert layout == "single"
    turns = work.Turns()
    optimizer = optax.chain(
        optax.clip_by_global_norm(work.CLIP_NORM),
        optax.adamw(work.LEARNING_RATE, weight_decay=0.0),
    )
    trainer = dpo_trainer.DPOTrainer(
        model=make_model(),
        ref_model=make_model(),
        optimizer=optimizer,
        training_config=dpo_trainer.DPOTrainingConfig(
            eval_every_n_steps=10**9, max_steps=10**6, beta=work.BETA
        ),
    )

    def data():
        turns.say(ready=True)
        number = 0
        while turns.wait():
            ids = [np.asarray(x) for x in zip(*work.single_pairs(number), strict=True)]
            masks = [np.ones_like(x) for x in ids]
            yield dpo_trainer.TrainingInput(
                prompt_ids=ids[0],
                prompt_mask=masks[0],
                chosen_ids=ids[1],
                chosen_mask=masks[1],
                rejected_ids=ids[2],
                rejected_mask=masks[2],
            )
            jax.block_until_ready(jax.tree.leaves(nnx.state(trainer.model)))
            turns.done()
            number += 1

    trainer.train(data())


if __name__ == "__main__":
    main(*sys.argv[1:])
