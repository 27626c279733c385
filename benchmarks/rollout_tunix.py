"""Sampling with tunix's Sampler: rollout_tunix.py WEIGHTS sample.

The Sampler takes text and has no way to ask for several candidates, so each prompt is
repeated. It puts a token in front of each prompt, so the text has one token less. The
weights are random, since their values do not change the time.
"""

import sys

import jax
import work
from run_tunix import make_model
from tunix.generate import sampler as tunix_sampler


class Words:
    """A tokenizer whose words are numbers."""

    def encode(self, text, **_):
        """Returns the ids of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        """Returns the text of ids."""
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self):
        """Returns the id in front of a prompt."""
        return 2

    def eos_id(self):
        """Returns the id that ends a text."""
        return 1

    def pad_id(self):
        """Returns the id of padding."""
        return 0


def main(directory: str, layout: str) -> None:
    """Prepares the work and serves it."""
    assert layout == "sample"
    shape, words = work.MODEL, Words()
    sampler = tunix_sampler.Sampler(
        make_model(),
        words,
        tunix_sampler.CacheConfig(
            cache_size=work.CONTEXT_TOKENS + work.CANDIDATE_TOKENS,
            num_layers=shape["num_layers"],
            num_kv_heads=shape["num_kv_heads"],
            head_dim=shape["head_dim"],
        ),
    )

    def step(number):
        texts = [words.decode(ids[1:]) for ids in work.prompts(number)]
        out = sampler(
            [text for text in texts for _ in range(work.CANDIDATES)],
            seed=number,
            max_generation_steps=work.CANDIDATE_TOKENS,
            max_prompt_length=work.CONTEXT_TOKENS,
            temperature=work.TEMPERATURE,
            top_p=work.TOP_P,
            top_k=None,
            eos_tokens=[-1],
        )
        jax.block_until_ready(out.tokens)
        assert len(out.tokens) == work.CONTEXTS * work.CANDIDATES
        assert len(out.tokens[0]) == work.CANDIDATE_TOKENS
        return {}

    work.serve(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
