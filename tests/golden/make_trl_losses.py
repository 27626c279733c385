"""Makes trl_losses.npz beside this file; needs torch, trl 1.16, transformers, datasets.

A tiny random Qwen2 is the policy, another one the reference. The file holds three pairs
of steps (tokens, masks), the hidden states and the unembedding of both models, and what
TRL's own code makes of them: log-probabilities, every loss pair by pair, its mean's
gradient with respect to the policy's unembedding, and the metrics that it logs. The
losses with a reference come from `DPOTrainer._compute_loss`, run for one pair after the
other; summed IPO and the losses without a reference from `CPOTrainer.cpo_loss` and
`ORPOTrainer.odds_ratio_loss`. Run once, from the repository root:

    python tests/golden/make_trl_losses.py
"""

import pathlib
import tempfile
import types

import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

HERE = pathlib.Path(__file__).parent
VOCAB, WIDTH, LENGTH = 19, 8, 12
PAIRS = ((3, 4, 2), (2, 2, 5), (4, 6, 3))  # tokens of context, chosen and rejected
BETA, SMOOTHING, ALPHA = 0.3, 0.15, 0.4
SIMPO_BETA, SIMPO_GAMMA, ORPO_WEIGHT, NLL_WEIGHT = 2.0, 0.5, 0.25, 0.7

# Name of ours → attributes of TRL's trainer.
CASES = {
    "step_dpo_loss": {"loss_types": ["sigmoid"]},
    # TRL 1.16 has no cDPO of its own: for one pair, AOT with smoothing is the same.
    "conservative_dpo_loss": {"loss_types": ["aot"]},
    "robust_dpo_loss": {"loss_types": ["robust"]},
    "hinge_dpo_loss": {"loss_types": ["hinge"]},
    "ipo_averaged_loss": {"loss_types": ["ipo"]},
    "dpo_nll_loss": {
        "loss_types": ["sigmoid", "sft"],
        "loss_weights": [1.0, NLL_WEIGHT],
    },
    "length_desensitised": {"loss_types": ["sigmoid"], "ld_alpha": ALPHA},
}


def random_model(seed):
    """Returns a Qwen2 whose every weight is drawn wide."""
    config = transformers.Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = transformers.Qwen2ForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return model


def make_trainer(policy, reference):
    """Returns TRL's trainer; its data set is never used."""
    words = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "t2"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    row = {"prompt": "t3 t4", "chosen": " t5", "rejected": " t6"}
    return trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=tempfile.mkdtemp(),
            beta=BETA,
            bf16=False,
            use_cpu=True,
            report_to=[],
            gradient_checkpointing=False,
            disable_dropout=True,
        ),
        train_dataset=datasets.Dataset.from_list([row] * 2),
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="t0", eos_token="t1", unk_token="t2"
        ),
    )


def make_rows():
    """Returns tokens and masks [6, T], the chosen steps first, padded on the right."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((2 * len(PAIRS), LENGTH), np.int64)
    completion, real = np.zeros_like(tokens), np.zeros_like(tokens)
    for number, (context, *lengths) in enumerate(PAIRS):
        prompt = rng.integers(3, VOCAB, context)
        for side, length in enumerate(lengths):
            row, end = number + side * len(PAIRS), context + length
            tokens[row, :context] = prompt
            tokens[row, context:end] = rng.integers(3, VOCAB, length)
            completion[row, context:end] = 1
            real[row, :end] = 1
    return tuple(map(torch.from_numpy, (tokens, completion, real)))


def main():
    """Writes the file and prints every loss."""
    policy, reference = random_model(1), random_model(2)
    trainer = make_trainer(policy, reference)
    tokens, completion, real = make_rows()
    names = ("input_ids", "completion_mask", "attention_mask")
    rows = dict(zip(names, (tokens, completion, real), strict=True))
    found = {"tokens": tokens, "step_mask": completion}
    for name, model in (("policy", policy), ("reference", reference)):
        with torch.no_grad():
            hidden = model.model(tokens, attention_mask=real).last_hidden_state
        found[f"{name}_hidden"] = hidden
        found[f"{name}_unembedding"] = model.lm_head.weight.detach()

    count = len(PAIRS)
    for case, settings in CASES.items():
        for name, value in {
            "loss_weights": [1.0],
            "ld_alpha": None,
            **settings,
        }.items():
            setattr(trainer, name, value)
        trainer.label_smoothing = SMOOTHING
        losses = []
        for pair in range(count):
            both = {k: v[[pair, pair + count]] for k, v in rows.items()}
            losses.append(trainer._compute_loss(policy, both, return_outputs=False))
        losses = torch.stack(losses)
        (gradient,) = torch.autograd.grad(losses.mean(), policy.lm_head.weight)
        found[case], found[f"{case}_gradient"] = losses.detach(), gradient
    trainer._metrics["train"].clear()
    trainer._metrics["eval"].clear()
    trainer.loss_types, trainer.ld_alpha, trainer.loss_weights = ["sigmoid"], None, [1]
    trainer._compute_loss(policy, rows, return_outputs=False)
    logged = trainer._metrics["train" if policy.training else "eval"]
    for name in ("chosen", "rejected", "margins", "accuracies"):
        found[f"rewards/{name}"] = torch.tensor(logged[f"rewards/{name}"][0])
    for name in ("chosen", "rejected"):
        found[f"logps/{name}"] = torch.tensor(logged[f"logps/{name}"][0])

    # By the trainers without a reference, from logits.
    weight = policy.lm_head.weight.detach().clone().requires_grad_()
    logits = found["policy_hidden"] @ weight.T
    labels = tokens.masked_fill(completion == 0, -100)
    for name, average in (("logps", False), ("mean_logps", True)):
        found[name] = CPOTrainer.get_batch_logps(
            logits, labels, average_log_prob=average, is_encoder_decoder=False
        )
    anchor = found["reference_hidden"] @ found["reference_unembedding"].T
    anchor = CPOTrainer.get_batch_logps(anchor, labels, is_encoder_decoder=False)
    ratios, means = (found["logps"] - anchor).chunk(2), found["mean_logps"].chunk(2)

    def cpo(**settings):
        here = types.SimpleNamespace(device=torch.device("cpu"))
        return types.SimpleNamespace(
            accelerator=here, alpha=0.0, label_smoothing=0.0, **settings
        )

    simpo = cpo(loss_type="simpo", beta=SIMPO_BETA, simpo_gamma=SIMPO_GAMMA)
    orpo = -means[0] - ORPOTrainer.odds_ratio_loss(cpo(beta=ORPO_WEIGHT), *means)[0]
    free = {
        "ipo_summed_loss": CPOTrainer.cpo_loss(
            cpo(loss_type="ipo", beta=BETA), *ratios
        )[0],
        "simpo_loss": CPOTrainer.cpo_loss(simpo, *means)[0],
        "orpo_loss": orpo,
    }
    for name, losses in free.items():
        (gradient,) = torch.autograd.grad(losses.mean(), weight, retain_graph=True)
        found[name], found[f"{name}_gradient"] = losses.detach(), gradient

    arrays = {k: v.detach().numpy() for k, v in found.items()}
    for name in ("tokens", "step_mask"):
        arrays[name] = arrays[name].astype(np.int32)
    settings = {
        "beta": BETA,
        "label_smoothing": SMOOTHING,
        "alpha": ALPHA,
        "simpo_beta": SIMPO_BETA,
        "simpo_gamma": SIMPO_GAMMA,
        "orpo_weight": ORPO_WEIGHT,
        "nll_weight": NLL_WEIGHT,
    }
    versions = {"trl": trl.__version__, "torch": torch.__version__}
    np.savez_compressed(HERE / "trl_losses.npz", **arrays, **settings, **versions)
    for name in (*CASES, *free, "logps"):
        print(name, arrays[name].round(4).tolist())


if __name__ == "__main__":
    main()
