"""The training step of TRL's DPOTrainer: run_trl.py WEIGHTS single.

Gradient checkpointing, which TRL turns on by default, is off, since there is enough
memory. TRL takes text and puts an end-of-sequence token after every step, so a step has
one word less than tokens.
"""

import copy
import sys
import tempfile

import datasets
import tokenizers
import torch
import transformers
import trl
import work

MOST = 64  # training steps that there are data for


def make_tokenizer():
    """Returns a tokenizer whose words are t8, t9, ..., one word per token."""
    special = ["<pad>", "</s>", "<unk>"] + [f"<s{i}>" for i in range(3, work.SPECIAL)]
    words = special + [f"t{i}" for i in range(work.SPECIAL, work.MODEL["vocab_size"])]
    table = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def make_data():
    """Returns the pairs of all training steps as text."""

    def text(ids):
        return " ".join(f"t{i}" for i in ids)

    return datasets.Dataset.from_list(
        [
            {
                "prompt": text(pair.context),
                "chosen": " " + text(pair.chosen[:-1]),
                "rejected": " " + text(pair.rejected[:-1]),
            }
            for number in range(MOST)
            for pair in work.single_pairs(number)
        ]
    )


class Clock(transformers.TrainerCallback):
    """Waits for its turn before a step and reports it after."""

    def __init__(self):
        self.turns, self.told = work.Turns(), False

    def on_step_begin(self, args, state, control, **_):
        """Starts the clock."""
        if not self.told:
            self.turns.say(ready=True)
            self.told = True
        if not self.turns.wait():
            sys.exit(0)

    def on_step_end(self, args, state, control, **_):
        """Stops the clock."""
        self.turns.done()


def main(directory: str, layout: str) -> None:
    """Trains until there is no turn left."""
    assert layout == "single"
    clock = Clock()
    torch.set_num_threads(2)
    datasets.disable_progress_bars()
    policy = transformers.Qwen2ForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    )
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=copy.deepcopy(policy),
        args=trl.DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=work.PAIRS,
            max_steps=MOST,
            learning_rate=work.LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=work.CLIP_NORM,
            beta=work.BETA,
            bf16=False,
            fp16=False,
            use_cpu=True,
            max_length=None,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=make_data(),
        processing_class=make_tokenizer(),
        callbacks=[clock],
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (2 * work.PAIRS, work.CONTEXT + work.STEP)
    assert batch["completion_mask"].sum() == 2 * work.PAIRS * work.STEP
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
