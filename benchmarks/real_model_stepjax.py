"""Work on a real model with stepjax: real_model_stepjax.py MODEL LAYOUT.

MODEL is a Hugging Face directory. LAYOUT is a name of `real_work.TOKENS` and a type,
for example "score, bfloat16". Trained weights, their gradients and AdamW's moments are
float32 with both types.

With gguf:FILE as MODEL, LAYOUT is a directory to which the weights are written.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import real_work as shapes
import work

from stepjax import forest, sft
from stepjax.lm import export, gguf_files, hf_config, sharding, train, weights
from stepjax.lm import model as lm
from stepjax.lm.generate import Decoding
from stepjax.lm.sampler import Sampler


def convert(file: str, directory: str) -> None:
    """Writes the weights of a GGUF file to a Hugging Face directory, in float32."""
    opened = gguf_files.GgufFile(file)
    config = gguf_files.config_from_gguf(opened)
    turns = work.Turns()
    export.save_hf(gguf_files.load_gguf(opened, config), config, directory)
    turns.say(written=True)


def load(directory: str, mesh, dtype: str, remat: str = "none"):
    """Returns (decoder, parameters on the mesh)."""
    config = hf_config.config_from_hf(directory)
    model = lm.Decoder(dataclasses.replace(config, dtype=dtype, remat=remat), mesh)
    own = sharding.param_shardings(mesh, lm.abstract_params(model))
    return model, weights.load_hf(directory, model.config, own)


def training(name: str, directory: str, dtype: str):
    """Returns the function of a training step: its gradient only, or a whole update."""
    mesh = sharding.make_mesh()
    model, params = load(directory, mesh, dtype, remat="full")
    loss = functools.partial(sft.loss, model=model)
    scored = [0.0] * (shapes.SEQUENCE - shapes.SCORED) + [1.0] * shapes.SCORED

    def batch(number):
        rows = shapes.sequences(number, model.config.vocab_size).tolist()
        trees = [forest.path_tree(row, scored) for row in rows]
        packed = forest.pack(trees, shapes.SEQUENCE)
        return train.put_batch(mesh, jax.tree.map(lambda x: x[None], packed))

    @jax.jit
    def differentiate(params, batch):
        rows = jax.tree.map(lambda x: x[0], batch)
        (value, (count, _)), slope = jax.value_and_grad(loss, has_aux=True)(
            params, None, rows
        )
        slope = jax.tree.map(lambda x: x / count, slope)
        facts = {"loss": value / count, "grad_norm": optax.global_norm(slope)}
        return slope, facts

    if name == "gradient":

        def step(number):
            slope, facts = differentiate(params, batch(number))
            jax.block_until_ready(slope)
            return {key: float(value) for key, value in facts.items()}

        return step
    options = train.OptimizerOptions(
        shapes.LEARNING_RATE, clip_norm=shapes.CLIP_NORM, weight_decay=0.0
    )
    optimizer = train.make_optimizer(options, steps=1000)
    update = train.make_update(
        loss, optimizer, train.state_shardings(params, optimizer)
    )
    state = train.init_state(params, optimizer)

    def whole_step(number):
        nonlocal state
        state, facts = update(state, None, batch(number))
        jax.block_until_ready(state)
        return {key: float(facts[key]) for key in ("loss", "grad_norm")}

    return whole_step


def decoding(name: str, directory: str, dtype: str):
    """Returns the function that scores, samples or judges behind shared contexts."""
    mesh = sharding.host_mesh(1)
    model, params = load(directory, mesh, dtype)
    params, vocab = lm.frozen(params, dtype), model.config.vocab_size
    no_stops = jnp.repeat(jnp.array([[0], [1]], jnp.int32), vocab, axis=1)

    def sample(rows, number, budget, temperature, **shared):
        shape = (len(rows), len(rows[0]))
        paths = np.stack(np.indices(shape), -1).astype(np.uint32)
        how = Decoding(number, temperature, 1.0, no_stops, vocab, budget)
        out = sampler.sample(rows, paths, how, **shared)
        assert out.tokens.shape == (*shape, budget) and (out.count == budget).all()
        return out.tokens

    if name == "judge":
        sampler = Sampler(model, params, mesh, shapes.PROBLEMS, shapes.JUDGE_CONTEXT)

        def judge(number):
            before, questions = shapes.judgments(number, vocab)
            sampler.hold(dict(enumerate(before.tolist())))
            tokens = sample(
                questions.tolist(),
                number,
                shapes.EXPLANATION,
                0.0,
                slots=range(shapes.PROBLEMS),
                share=(shapes.STEPS - 1,),  # questions with the same first step
            )
            return {"rows": tokens.reshape(-1, shapes.EXPLANATION).tolist()}

        return judge
    sampler = Sampler(model, params, mesh, shapes.CONTEXTS, shapes.CONTEXT)

    def step(number):
        before = shapes.contexts(number, vocab).tolist()
        sampler.hold({slot: ids[:-1] for slot, ids in enumerate(before)})
        if name == "sample":
            fed = [[ids[-1:]] * shapes.CANDIDATES for ids in before]
            sample(fed, number, shapes.NEW, 1.0)
            return {}
        rows = [
            [ids[-1:] + one for one in ones]
            for ids, ones in zip(
                before, shapes.continuations(number, vocab).tolist(), strict=True
            )
        ]
        counts = np.full((shapes.CONTEXTS, shapes.CANDIDATES), shapes.CONTINUATION)
        logps = sampler.score(rows, counts, vocab=vocab, slots=range(shapes.CONTEXTS))
        return {"rows": logps.ravel().tolist()}

    return step


def main(directory: str, layout: str) -> None:
    """Prepares the work and serves it, or converts a model."""
    if directory.startswith("gguf:"):
        return convert(directory.removeprefix("gguf:"), layout)
    name, dtype = layout.split(", ")
    prepare = training if name in ("gradient", "update") else decoding
    return work.serve(prepare(name, directory, dtype))


if __name__ == "__main__":
    main(*sys.argv[1:])
