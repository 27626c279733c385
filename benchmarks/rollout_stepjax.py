"""Sampling, scoring and judging with stepjax: rollout_stepjax.py WEIGHTS LAYOUT.

WEIGHTS is a Hugging Face directory for the other programs to read; it is written when
it does not exist. LAYOUT is sample, score, judge or verdict, see work.py.
"""

import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import work

from stepjax.lm import export, sharding, train
from stepjax.lm import model as lm
from stepjax.lm.generate import Decoding
from stepjax.lm.sampler import Sampler

CONFIG = lm.ModelConfig(**work.MODEL)
VOCAB = CONFIG.vocab_size
NO_STOPS = np.repeat([[0], [1]], VOCAB, axis=1).astype(np.int32)


def sampling(sampler: Sampler, budget: int, temperature: float, top_p: float):
    """Returns a function that samples rows behind contexts: as the search does it."""
    table = jnp.asarray(NO_STOPS)

    def sample(rows, number, slots=None, share=()):
        shape = (len(rows), len(rows[0]))
        paths = np.stack(np.indices(shape), -1).astype(np.uint32)
        decoding = Decoding(number, temperature, top_p, table, VOCAB, budget)
        out = sampler.sample(rows, paths, decoding, slots=slots, share=share)
        assert out.tokens.shape == (*shape, budget) and (out.count == budget).all()
        return out.tokens

    return sample


def main(directory: str, layout: str) -> None:
    """Prepares the work and serves it."""
    mesh = sharding.host_mesh(1)
    model = lm.Decoder(CONFIG, mesh)
    params = train.init_params(model, mesh, seed=0)
    if not pathlib.Path(directory).exists():
        export.save_hf(params, CONFIG, directory)
    if layout in ("judge", "verdict"):
        sampler = Sampler(model, params, mesh, 1, work.JUDGE_CONTEXT)
        sample = sampling(sampler, work.EXPLANATION, 0.0, 1.0)
        share = work.CANDIDATES - 1  # as `self_judge.make_judge` lays them out

        def step(number):
            context, questions = work.judgments(number)
            sampler.hold({0: context})
            if layout == "judge":
                tokens = sample([questions], number, [0], (share,))
                return {"rows": tokens[0].tolist()}
            rows = [q + (verdict,) for q in questions for verdict in work.VERDICTS]
            ones = np.ones((1, len(rows)), np.int32)
            logps = sampler.score(
                [rows], ones, vocab=VOCAB, slots=[0], share=(2 * share, 2)
            )
            return {"rows": (logps[0, ::2] - logps[0, 1::2]).tolist()}

        return work.serve(step)
    sampler = Sampler(model, params, mesh, work.CONTEXTS, work.CONTEXT_TOKENS)
    sample = sampling(sampler, work.CANDIDATE_TOKENS, work.TEMPERATURE, work.TOP_P)

    def step(number):
        prompts = work.prompts(number)
        sampler.hold({slot: ids[:-1] for slot, ids in enumerate(prompts)})
        if layout == "sample":
            sample([[ids[-1:]] * work.CANDIDATES for ids in prompts], number)
            return {}
        rows = [
            [ids[-1:] + one for one in ones]
            for ids, ones in zip(prompts, work.candidates(number), strict=True)
        ]
        scored = np.full((work.CONTEXTS, work.CANDIDATES), work.CANDIDATE_TOKENS)
        slots = range(work.CONTEXTS)
        logps = sampler.score(rows, scored, vocab=VOCAB, slots=slots)
        return {"rows": logps.ravel().tolist()}

    return work.serve(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
