"""An update of step-DPO: adapters_stepjax.py MODEL,PAIRS,BATCH,LENGTH,DTYPE ARM.

ARM is "full", or "rank-8": the same model as the frozen base of adapters of this rank.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import work

from stepjax import dpo, forest
from stepjax.lm import hf_config, lora, sharding, train, weights
from stepjax.lm import model as lm

RATES = {"full": 1e-5, "rank": 1e-4}


def read_pairs(path: str, row_length: int) -> list[forest.IdPair]:
    """Returns the pairs of a pairs.jsonl that fit a row."""
    rows = map(json.loads, pathlib.Path(path).read_text("utf-8").splitlines())
    names = "context_ids", "chosen_ids", "rejected_ids"
    pairs = [forest.IdPair(*(tuple(row[name]) for name in names)) for row in rows]
    return dpo.fitting_pairs(pairs, row_length)[0]


def main(given: str, arm: str) -> None:
    """Prepares the update and serves it."""
    directory, path, batch_size, row_length, dtype = given.split(",")
    kind, _, rank = arm.partition("-")
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    config = hf_config.config_from_hf(directory)
    config = dataclasses.replace(config, dtype=dtype, remat="full")
    plain = lm.Decoder(config, mesh)
    shardings = sharding.param_shardings(mesh, lm.abstract_params(plain))
    params = weights.load_hf(directory, config, shardings)
    model, fixed, trained = plain, {}, params
    if rank:
        options = lora.Options(int(rank), 16.0)
        model = lm.Decoder(dataclasses.replace(config, adapters=options), mesh)
        fixed = jax.tree.map(lambda x: x.astype(dtype), params)

        def adapters(whole):
            return lora.split(whole)[1]

        trained = train.init_params(model, mesh, 0, adapters)
    del params
    batches = dpo.make_batches(
        read_pairs(path, int(row_length)),
        mesh=mesh,
        batch_size=int(batch_size),
        micro_batches=1,
        row_length=int(row_length),
        epochs=1,
        seed=0,
    )
    batches = dpo.with_reference(model, lora.join(fixed, trained), batches, mesh)
    loss = functools.partial(dpo.loss, model=model, options=dpo.Options())
    optimizer = train.OptimizerOptions(RATES[kind], warmup_steps=2)
    optimizer = train.make_optimizer(optimizer, len(batches))
    update = train.make_update(
        lora.behind(loss), optimizer, train.state_shardings(trained, optimizer)
    )
    state = train.init_state(trained, optimizer)
    numbers = sum(x.size for x in jax.tree.leaves(trained))
    del trained

    def step(number):
        nonlocal state
        batch = train.put_batch(mesh, batches[number % len(batches)])
        state, metrics = jax.block_until_ready(update(state, (fixed, None), batch))
        return {"loss": float(metrics["loss"]), "numbers": numbers}

    work.serve(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
