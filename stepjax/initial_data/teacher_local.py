"""A model of our own as the teacher: it writes on from each prompt."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence

from stepjax.codec import Codec
from stepjax.initial_data.teacher import Generate
from stepjax.initial_data.teacher_answers import Answer
from stepjax.lm import draws, pretrained
from stepjax.lm.model_config import ModelConfig
from stepjax.lm.sampler import Sampler, make_decoding, sample_behind
from stepjax.lm.tokenizer import Tokenizer
from stepjax.prompts import Templates
from stepjax.settings import Settings, model_config
from stepjax.trajectory import hash_id


def described(settings: Settings, templates: Templates) -> tuple[Codec, ModelConfig]:
    """Returns the codec and the config of the model in `teacher.model`.

    They are read and checked as those of `model.init` are; no weights are read.

    Args:
      settings: of the run.
      templates: of the run.

    Raises:
      ValueError: when files of the model are missing or damaged, or the decoder does
        not compute it.
    """
    name = settings.teacher.model
    with tempfile.TemporaryDirectory() as folder:
        ids = pretrained.save_tokenizer(name, folder)
    shape = dataclasses.replace(settings.shape, adapters=None)
    as_m0 = dataclasses.replace(settings, init=name, shape=shape)
    return Codec(ids, templates), model_config(as_m0, ids.vocab_size)


def sampled(
    sampler: Sampler,
    tokenizer: Tokenizer,
    *,
    ends: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int,
    seed: int = 0,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> Generate:
    """Returns a model that writes the answers of the teacher "local".

    An answer depends on its own prompt only, not on what is asked beside it.

    Args:
      sampler: context caches; as many prompts as it has slots are answered together.
      tokenizer: reads prompts and writes answers.
      ends: texts that end an answer and belong to it: both verdicts where pairs are
        judged. The end of the sequence ends an answer in any case.
      temperature: 0 is greedy.
      top_p: share of the probability that is sampled from.
      max_tokens: most tokens of an answer; a longer one is cut off.
      seed: of the draws.
      encode: prompt → ids; None takes `tokenizer.encode_prompt`.

    Returns:
      ``generate(prompts)``: yields (index of a prompt, its answer), in any order.
      ValueError when a prompt is longer than a context cache.
    """
    decoding = make_decoding(
        tokenizer,
        ends,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
    slots = len(sampler.held)
    encode = encode or tokenizer.encode_prompt

    def generate(prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        # A slot gets neighbours one after another. They often begin alike (the two
        # orders of a pair), and what its cache holds already is not computed again.
        rounds = -(-len(prompts) // slots)
        for turn in range(rounds):
            batch = list(range(turn, len(prompts), rounds))
            ids = [list(encode(prompts[index])) for index in batch]
            names = [hash_id(prompts[index]) for index in batch]
            paths = [[draws.candidate_path(0, name, 0, 0, 0)] for name in names]
            rows = sample_behind(
                sampler, dict(enumerate(ids)), dict(enumerate(paths)), decoding
            )
            for slot, index in enumerate(batch):
                (row,) = rows[slot]
                end = row.ids[-1:] and row.ids[-1] in tokenizer.stop_ids
                text = tokenizer.decode(row.ids[:-1] if end else row.ids)
                yield index, Answer(text, row.stopped, len(ids[slot]) + len(row.ids))

    return generate
