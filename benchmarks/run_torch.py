"""The training step that one writes by hand in torch: run_torch.py WEIGHTS LAYOUT.

transformers' Qwen2 with fused attention, logits of scored tokens only and fused AdamW.
LAYOUT is "single" (dpo_step.py) or "separate" (trajectories.py: the pairs with the same
step number, which are of one length, are one micro-batch).
"""

import copy
import sys

import torch
import transformers
import work


def step_logps(model, tokens, length):
    """Returns the summed log-probabilities of the last `length` tokens of each row."""
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=length + 1).logits[
        :, :-1
    ]
    picked = logits.gather(-1, tokens[:, -length:, None])[..., 0]
    return (picked - torch.logsumexp(logits, -1)).sum(-1)


def batches(layout: str, number: int):
    """Returns micro-batches: tokens [2 P, T], chosen steps first, and the length."""
    if layout == "single":
        groups = [work.single_pairs(number)]
    else:
        groups = zip(*work.trajectories(number), strict=True)
    for pairs in groups:
        rows = [p.context + p.chosen for p in pairs]
        rows += [p.context + p.rejected for p in pairs]
        yield torch.tensor(rows), len(pairs[0].chosen)


def main(directory: str, layout: str) -> None:
    """Prepares the step and serves it."""
    torch.set_num_threads(2)
    policy = transformers.Qwen2ForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    )
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    policy.train()
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=work.LEARNING_RATE, weight_decay=0.0, fused=True
    )
    count = {"single": work.PAIRS, "separate": work.PROBLEMS * work.STEPS}[layout]

    def step(number):
        total = 0.0
        for tokens, length in batches(layout, number):
            with torch.no_grad():
                anchor = step_logps(reference, tokens, length)
            reward = step_logps(policy, tokens, length) - anchor
            chosen, rejected = reward.chunk(2)
            margin = work.BETA * (chosen - rejected)
            loss = -torch.nn.functional.logsigmoid(margin).sum() / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), work.CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": total, "grad_norm": norm.item()}

    work.serve(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
