"""A run of seconds on made-up word problems, with really sampled steps in its EFT."""

import json
import pathlib
import random

import tokenizers

from stepjax import config
from stepjax.initial_data.formats import word_problems as form
from stepjax.prompts import Templates
from stepjax.worlds import equations
from stepjax.worlds import word_problems as world

_TEXTS = (
    ("+ a b", "{name} has {a} {thing} and finds {b} more. How many {thing} now?"),
    ("- a b", "{name} had {a} {thing} and lost {b}. How many {thing} are left?"),
    ("* a b", "{name} buys {a} boxes of {b} {thing}. How many {thing} is that?"),
    ("- + a b b", "{name} has {a} {thing}, gets {b} and eats {b}. How many are left?"),
)
_NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal", "Ida", "Jon")
_THINGS = ("pens", "cups", "nuts", "eggs")


def rows(count: int, seed: int = 0) -> list[dict]:
    """Returns made-up word problems; their texts differ in more than numbers."""
    rng = random.Random(f"made-up word problems, seed {seed}")
    kinds = [(t, n, x) for t in _TEXTS for n in _NAMES for x in _THINGS]
    made = []
    for number, ((equation, text), name, thing) in enumerate(rng.sample(kinds, count)):
        a, b = rng.randrange(3, 10), rng.randrange(1, 4)
        problem = text.format(name=name, thing=thing, a=a, b=b)
        equation = equation.replace("a", str(a)).replace("b", str(b))
        value = equations.read_equation(equation)[1][-1].value
        row = {"id": f"made-{number}", "problem": problem, "answer": str(value)}
        made.append(row | {"equation": equation})
    return made


def make(folder: pathlib.Path):
    """Writes data and tokenizer into a folder; returns the settings of a tiny run."""
    write(folder)
    return settings(folder)


def write(folder: pathlib.Path) -> None:
    """Writes problems, test problems and a tokenizer into a folder."""
    made = rows(134)
    for name, part in (("problems", made[:122]), ("test", made[122:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines)
    _train_tokenizer(folder / "tokenizer", made)


def settings(folder: pathlib.Path):
    """Returns the settings of a tiny run with the data of a folder."""
    c = config.default()
    c.iterations = 1
    c.tokenizer = str(folder / "tokenizer")
    c.data.world = "word_problems"
    c.data.equations = str(folder / "problems.jsonl")
    c.data.test = str(folder / "test.jsonl")
    c.data.test_format = "word_problems"
    c.data.questions = (16,)
    c.data.heldout_count = 6
    c.data.ift_count = 60
    c.data.ift_variants = 1
    c.data.drills = 4
    c.data.make_eft = True
    c.data.corrupted_count = 20
    c.prm.labels = "gold"
    c.teacher.backend = "world"
    c.teacher.undecided_margin = 0.5

    c.model.hidden_size = 32
    c.model.num_kv_heads = 1
    c.model.head_dim = 16
    c.model.intermediate_size = 64
    c.model.embedding_std = 0.5
    c.model.init_std = 0.1

    c.train.row_length = 192
    c.train.checkpoint_every = 0
    sizes = {
        "epochs": 0,
        "batch_size": 16,
        "optimizer": config.optimizer(1e-2, b2=0.98),
    }
    c.mcts.phase = config.phase("policy", eft=0.0, steps=150, **sizes)
    c.mcts.questions = 40
    c.mcts.width = 4
    c.mcts.temperature = 1.0
    c.mcts.top_p = 1.0
    c.mcts.iterations = 3
    c.mcts.depth = 0
    c.mcts.exploration = 0.1
    c.mcts.max_steps = 3
    c.mcts.pairs_per_node = 2
    c.mcts.undecided_share = 0.3
    c.mcts.remember_tokens = 0
    c.sft.from_policy = True
    c.sft.verdict_words = ("right", "wrong")
    c.sft.phases = (config.phase("mixed", steps=100, **sizes),)
    c.search.width = 4
    c.search.temperature = 1.0
    c.search.max_expansions = 4
    c.search.max_step_tokens = 32
    c.search.context_tokens = 160
    c.search.slots = 8
    c.judge.max_tokens = 48
    c.judge.context_tokens = 160
    c.judge.rows = 4
    c.dpo.batch_size = 8
    c.dpo.optimizer = config.optimizer(1e-3)
    c.eval.max_tokens = 64
    return c


def _train_tokenizer(folder: pathlib.Path, made: list[dict]) -> None:
    """Writes a small byte-level tokenizer whose end of sequence is "</s>"."""
    texts = [world.SOLVE, world.JUDGE, "[[A]] [[B]] The next last calculation is gets"]
    for row in made:
        (solution,) = form.solution(row, row["id"], Templates())
        texts += [row["problem"], *solution.steps]
    ids = tokenizers.Tokenizer(tokenizers.models.BPE())
    ids.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    ids.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    ids.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(ids.to_str(), "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
