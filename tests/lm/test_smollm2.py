"""A real model: SmolLM2-135M-Instruct from a GGUF file, against transformers.

Needs the file, named by STEPJAX_SMOLLM2, and torch; takes minutes.
"""

import os
import pathlib

import jax
import numpy as np
import pytest

from stepjax.lm import export, gguf_files, gguf_tokenizer, tokenizer
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler, make_decoding

FILE = os.environ.get("STEPJAX_SMOLLM2")
pytestmark = pytest.mark.skipif(
    not FILE, reason="STEPJAX_SMOLLM2 does not name the GGUF file of SmolLM2"
)
NEW = 48  # tokens per answer
# Problems of the kind that the answers are compared on; numbers differ.
PROBLEMS = [
    text.format(a=17 + 3 * n, b=4 + n)
    for n in range(4)
    for text in (
        "Tom has {a} apples and eats {b} of them. How many apples are left?",
        "A box holds {b} pens. How many pens are in {a} boxes?",
        "Ann reads {b} pages on each of {a} days. How many pages does she read?",
        "There are {a} birds on a tree and {b} more come. How many birds are there?",
    )
]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Config, parameters and tokenizer of stepjax, and the folder of the latter."""
    folder = tmp_path_factory.mktemp("tokenizer")
    file = gguf_files.GgufFile(FILE)
    gguf_tokenizer.save_tokenizer(file, folder)
    gguf_tokenizer.save_configs(file, folder)
    config = gguf_files.config_from_gguf(file)
    return config, gguf_files.load_gguf(file, config), tokenizer.load(folder), folder


@pytest.fixture(scope="module")
def theirs(torch):
    """Model and tokenizer of transformers, read from the same file."""
    transformers = pytest.importorskip("transformers")
    path = pathlib.Path(FILE)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return model.eval()


@pytest.fixture(scope="module")
def answers(ours, one_device):
    """Greedy answers of stepjax: (ids of the prompt, ids of the answer)."""
    config, params, ids, _ = ours
    prompts = [
        ids.encode_prompt(
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        )
        for text in PROBLEMS
    ]
    model = lm.Decoder(config, one_device)
    sampler = Sampler(model, lm.frozen(params, "float32"), one_device, 16, 128)
    decoding = make_decoding(
        ids, (), seed=0, temperature=0.0, top_p=1.0, max_tokens=NEW
    )
    sampler.hold({slot: prompt[:-1] for slot, prompt in enumerate(prompts)})
    paths = np.zeros((16, 1, 7), np.uint32)
    made = sampler.sample([[[prompt[-1]]] for prompt in prompts], paths, decoding)
    rows = [
        np.asarray(made.tokens)[slot, 0, : int(made.count[slot, 0])].tolist()
        for slot in range(16)
    ]
    return list(zip(prompts, rows, strict=True))


def generated(torch, model, prompt):
    with torch.no_grad():
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False
        )
    return made[0, len(prompt) :].tolist()


def test_logits_of_the_real_model_are_those_of_transformers(ours, theirs, torch):
    config, params, ids, _ = ours
    worst = 0.0
    for text in PROBLEMS[:4]:
        tokens = np.array([ids.encode_prompt(f"{text}\nStep 1: ")])
        length = tokens.shape[1]

        def logits(params, tokens=tokens, length=length):
            hidden = lm.Decoder(config).apply(
                {"params": params},
                tokens,
                np.arange(length)[None],
                np.full((1, length), length),
            )
            return lm.logits(params, hidden)

        found = np.asarray(jax.jit(logits)(params))[0]
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens)).logits[0].numpy()
        assert expected.std() > 1
        difference = np.abs(found - expected).max(-1) / np.abs(expected).max(-1)
        worst = max(worst, difference.max())
    print(f"largest relative difference of the logits: {worst:.1e}")
    assert worst < 1e-3


def test_greedy_answers_of_the_real_model_are_those_of_transformers(
    answers, theirs, torch
):
    assert len(answers) == 16
    assert sum(len(answer) for _, answer in answers) > 300
    for prompt, answer in answers:
        assert generated(torch, theirs, prompt) == answer


def test_an_export_of_the_real_model_generates_the_same(ours, answers, torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    config, params, ids, folder = ours
    export.save_hf(
        params,
        config,
        tmp_path / "out",
        tokenizer_directory=folder,
        stop_ids=ids.stop_ids,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 8192
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text, (prompt, answer) in zip(PROBLEMS, answers, strict=True):
        message = [{"role": "user", "content": text}]
        chat = theirs.apply_chat_template(
            message, add_generation_prompt=True, tokenize=False
        )
        assert chat.endswith(f"{text}<|im_end|>\n<|im_start|>assistant\n")
        ending = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        assert theirs(ending)["input_ids"] == prompt
        assert generated(torch, model, prompt) == answer
