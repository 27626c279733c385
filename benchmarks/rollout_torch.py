"""Sampling, scoring and judging with transformers: rollout_torch.py WEIGHTS LAYOUT.

sample          `generate` with as many return sequences as candidates.
sample, shared  the contexts computed once by hand and their caches copied.
score           the contexts computed once by hand and their caches copied.
score, whole    every row whole, logits of scored tokens only.
judge           `generate` on the whole prompt of every judgment, in one batch.
verdict         the logits after the same prompts, in one batch.
"""

import sys

import torch
import transformers
import work


def copied_cache(model, contexts):
    """Returns the cache of contexts [P, T] and their last logits, per candidate."""
    cache = transformers.DynamicCache(config=model.config)
    last = model(contexts, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(work.CANDIDATES)
    return cache, last.logits.repeat_interleave(work.CANDIDATES, 0)


def sample(model, number, shared):
    """Returns the sampled rows."""
    prompts = torch.tensor(work.prompts(number))
    options = dict(
        do_sample=True,
        temperature=work.TEMPERATURE,
        top_p=work.TOP_P,
        top_k=0,
        max_new_tokens=work.CANDIDATE_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    if not shared:
        mask = torch.ones_like(prompts)
        options["num_return_sequences"] = work.CANDIDATES
        return model.generate(prompts, attention_mask=mask, **options)
    cache, _ = copied_cache(model, prompts[:, :-1])
    rows = prompts.repeat_interleave(work.CANDIDATES, 0)
    mask = torch.ones_like(rows)
    return model.generate(rows, attention_mask=mask, past_key_values=cache, **options)


def score(model, number, shared):
    """Returns the log-probability of every candidate."""
    contexts = torch.tensor(work.prompts(number))
    steps = torch.tensor(work.candidates(number)).flatten(0, 1)
    if shared:
        cache, last = copied_cache(model, contexts)
        body = model(steps[:, :-1], past_key_values=cache, use_cache=True).logits
        logits = torch.cat([last, body], 1)
    else:
        rows = contexts.repeat_interleave(work.CANDIDATES, 0)
        rows = torch.cat([rows, steps], 1)
        kept = steps.shape[1] + 1
        logits = model(rows, use_cache=False, logits_to_keep=kept).logits[:, :-1]
    picked = logits.gather(-1, steps[..., None])[..., 0]
    return (picked - torch.logsumexp(logits, -1)).sum(-1)


def judge(model, number):
    """Returns the greedy explanation of every judgment."""
    context, questions = work.judgments(number)
    rows = torch.tensor([context + question for question in questions])
    out = model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        do_sample=False,
        max_new_tokens=work.EXPLANATION,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[:, rows.shape[1] :]


def verdict(model, number):
    """Returns the log-odds of A right after every prompt."""
    context, questions = work.judgments(number)
    rows = torch.tensor([context + question for question in questions])
    logits = model(rows, use_cache=False, logits_to_keep=1).logits[:, -1]
    a, b = work.VERDICTS
    return logits[:, a] - logits[:, b]


def main(directory: str, layout: str) -> None:
    """Prepares the work and serves it."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    @torch.inference_mode()
    def step(number):
        if layout == "judge":
            return {"rows": judge(model, number).tolist()}
        if layout == "verdict":
            return {"rows": verdict(model, number).tolist()}
        if layout.startswith("score"):
            return {"rows": score(model, number, layout == "score").tolist()}
        rows = sample(model, number, layout == "sample, shared")
        made = work.CONTEXT_TOKENS + work.CANDIDATE_TOKENS
        assert rows.shape == (work.CONTEXTS * work.CANDIDATES, made)
        return {}

    work.serve(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
