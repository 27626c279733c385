"""Work on a real model with transformers: real_model_torch.py MODEL LAYOUT.

MODEL is a Hugging Face directory. LAYOUT is a name of `real_work.TOKENS` and a type,
for example "score, bfloat16". Weights, gradients and AdamW's moments have that type.
"""

import math
import sys

import real_work as shapes
import torch
import transformers
import work


def token_logps(model, rows, length):
    """Returns log-probabilities of the last `length` tokens of each row, float32."""
    out = model(rows, use_cache=False, logits_to_keep=length + 1)
    return -torch.nn.functional.cross_entropy(
        out.logits[:, :-1].float().transpose(1, 2), rows[:, -length:], reduction="none"
    )


def training(name, model):
    """Returns the function of a training step: its gradient only, or a whole update."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=shapes.LEARNING_RATE, weight_decay=0.0, fused=True
    )
    clip = shapes.CLIP_NORM if name == "update" else math.inf

    def step(number):
        rows = torch.tensor(shapes.sequences(number, model.config.vocab_size))
        loss = -token_logps(model, rows, shapes.SCORED).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if name == "update":
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "grad_norm": norm.item()}

    return step


def generated(model, rows, new, **options):
    """Returns exactly `new` tokens behind each row."""
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no EOS
    out = model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        min_new_tokens=new,
        max_new_tokens=new,
        **options,
    )
    assert out.shape[1] == rows.shape[1] + new
    return out[:, rows.shape[1] :]


def decoding(name, model):
    """Returns the function that scores, samples or judges whole rows."""
    model.eval()
    vocab = model.config.vocab_size

    @torch.inference_mode()
    def step(number):
        if name == "judge":
            before, questions = map(torch.tensor, shapes.judgments(number, vocab))
            rows = torch.cat(
                [
                    before.repeat_interleave(questions.shape[1], 0),
                    questions.flatten(0, 1),
                ],
                1,
            )
            out = generated(model, rows, shapes.EXPLANATION, do_sample=False)
            return {"rows": out.tolist()}
        before = torch.tensor(shapes.contexts(number, vocab))
        if name == "sample":
            out = generated(
                model,
                before,
                shapes.NEW,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                num_return_sequences=shapes.CANDIDATES,
            )
            assert len(out) == shapes.CONTEXTS * shapes.CANDIDATES
            return {}
        ones = torch.tensor(shapes.continuations(number, vocab)).flatten(0, 1)
        rows = torch.cat([before.repeat_interleave(shapes.CANDIDATES, 0), ones], 1)
        return {"rows": token_logps(model, rows, shapes.CONTINUATION).sum(1).tolist()}

    return step


def main(directory: str, layout: str) -> None:
    """Prepares the work and serves it."""
    name, dtype = layout.split(", ")
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    prepare = training if name in ("gradient", "update") else decoding
    work.serve(prepare(name, model))


if __name__ == "__main__":
    main(*sys.argv[1:])
