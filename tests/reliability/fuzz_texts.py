"""Tokenizers, texts that name special tokens, and what judges and solvers write."""

import functools
import json
import os
import random
import shutil

import chat_tokenizers
from fuzz import Case

from stepjax import prompts, srlm
from stepjax.codec import Codec
from stepjax.evaluation import answers
from stepjax.lm import tokenizer
from stepjax.prompts import Templates
from stepjax.records import Comparison, Solution

TEMPLATES = Templates()
RATED = srlm.Texts()
CONTROL = (
    *("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>", "<unk>"),
    *("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>"),
)
WORDS = ("Step", "apples", "12", "[[A]]", "[[B]]", "\\boxed{", "}", "{", "\n", " ")
DEEP = "[" * 100_000


@functools.cache
def _folder(place, family):
    """The tokenizer of a family; written once."""
    return chat_tokenizers.write(family, place / f"of {family}")


@functools.cache
def _codec(place, family, chat):
    return Codec(tokenizer.load(_folder(place, family)), Templates(chat=chat))


def _config(draw, folder):
    file = folder / "tokenizer_config.json"
    data = json.loads(file.read_text())
    name = draw.choice(("eos_token", "bos_token", "pad_token", "unk_token"))
    data[name] = f"<|none {draw.randrange(99)}|>"
    file.write_text(json.dumps(data))
    return f"{name} is no token"


def _generation(draw, folder):
    value = draw.choice((10**6, -1, 2**63, "2", [2.5], [[2]], {}, True, [None, 99**9]))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    return f"generation_config.json: eos_token_id = {value}"


def _broken(draw, folder):
    name = draw.choice(("tokenizer.json", "tokenizer_config.json"))
    name = draw.choice((name, name, "generation_config.json", "config.json"))
    what, text = draw.choice(
        [
            ("empty", ""),
            ("deep", DEEP),
            ("a list", "[]"),
            ("no JSON", "{"),
            ("a number", "5"),
        ]
    )
    (folder / name).write_text(text)
    return f"{name}: {what}"


def _special_file(draw, folder):
    name = draw.choice(
        ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    )
    (folder / name).unlink(missing_ok=True)
    if draw.random() < 0.5:
        os.mkfifo(folder / name)
        return f"{name} is a pipe"
    (folder / name).symlink_to("/dev/zero")
    return f"{name} is a device"


def _vocabulary(draw, folder):
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    model = data["model"]
    what = draw.choice(("a large id", "no vocabulary", "a merge of no tokens"))
    if what == "a large id" and isinstance(model["vocab"], dict):
        model["vocab"]["zzz"] = draw.choice((2**31, 2**32 - 1, 20_000_000))
    elif what == "a merge of no tokens" and "merges" in model:
        model["merges"].append(["qqq", "zzz"])
    else:
        what = "no vocabulary"
        model["vocab"] = draw.choice((None, 5, "x"))
    file.write_text(json.dumps(data))
    return what


def tokenizer_case(seed, folder):
    """One folder of a tokenizer."""
    draw = random.Random(seed)
    family = draw.choice(sorted(chat_tokenizers.FAMILIES))
    own = folder / "tokenizer"
    shutil.copytree(_folder(folder.parent, family), own)
    attempt = functools.partial(tokenizer.load, own)
    if draw.random() < 0.15:
        return Case(f"{family}: nothing", False, attempt)
    ways = (_config, _generation, _broken, _special_file, _vocabulary)
    what = draw.choice(ways)(draw, own)
    # Where tokenizer_config.json is whole, transformers does not read config.json.
    wrong = None if what.startswith("config.json") else True
    return Case(f"{family}: {what}", wrong, attempt, (str(own),) if wrong else ())


def _some(draw, words, count):
    return "".join(draw.choice(words) for _ in range(draw.randrange(1, count)))


def special_case(seed, folder):
    """Texts that hold names of special tokens are encoded as text, and come back."""
    draw = random.Random(seed)
    family = draw.choice(sorted(chat_tokenizers.FAMILIES))
    codec = _codec(folder.parent, family, draw.choice(("none", "template")))
    plain = ("a", " b", "Step", " apples", "12", *CONTROL)
    problem, x, y, said = (_some(draw, plain, 8) for _ in range(4))
    steps = (f"Step 1: {x}", f"Step 2: {y} \\boxed{{1}}")

    def attempt():
        ids = codec.tokenizer
        control = {n for n, held in enumerate(ids.token_bytes) if not held}
        control -= {ids.unknown_id}
        prompt, found = codec.solution(Solution("s", problem, steps, "1"))
        bare, _ = codec.solution(Solution("s", "a", steps, "1"))
        assert sum(i in control for i in prompt) == sum(i in control for i in bare)
        assert found[-1][-1] == ids.eos_id
        assert not control & {*sum(found, ())[:-1]}
        pair = f"Step 2: {x}", f"Step 2: {y}!"
        row = Comparison("c", problem, steps[:1], *pair, "A", f"{said}\n")
        asked, response = codec.comparison(row)
        plainly = Comparison("c", "a", ("Step 1: a",), "Step 2: a", "Step 2: b", "A")
        usual, _ = codec.comparison(plainly)
        assert sum(i in control for i in asked) == sum(i in control for i in usual)
        assert response[-1] == ids.eos_id and not control & {*response[:-1]}

    return Case(f"{family}: {problem!r}, {x!r}, {y!r}, {said!r}", False, attempt)


def answer_case(seed, folder):
    """What a judge or a solver may write, with what must be read in it."""
    draw = random.Random(seed)
    text = _some(draw, (*WORDS, *CONTROL, "Score: ", "\u0663", "\0"), 40)
    way = draw.randrange(6)
    n, other = draw.randrange(100), draw.randrange(10**6)

    def attempt():
        if way == 0:
            side = draw.choice("AB")
            assert prompts.parse_verdict(TEMPLATES, f"{text}[[{side}]]") == side
            quiet = text.replace("[[", "")
            assert prompts.parse_verdict(TEMPLATES, quiet) is None
        elif way == 1:
            rating = n if n < 10 else None
            assert srlm.read_rating(RATED, f"{text}\nScore: {n}") == rating
            assert srlm.read_rating(RATED, f"Score: {n}.5") is None
            assert srlm.read_rating(RATED, f"Score: -{n}") is None
        elif way == 2:
            assert prompts.boxed(text * 2000) is None or "}" in text
            assert answers.extract(f"{text}\\boxed{{{n}}}") == str(n)
        elif way == 3:
            try:
                steps = prompts.split_steps(TEMPLATES, f"Step 1: {text}")
            except ValueError:
                return
            prompts.check_steps(TEMPLATES, steps)
        elif way == 4:
            assert answers.equivalent(str(n), f"{n}.0")
            assert answers.equivalent(f"{other:,}", f"\\frac{{{2 * other}}}{{2}}")
            assert not answers.equivalent(str(n), str(n + 1))
            assert not answers.equivalent(f"{n}.{other + 1}1", f"{n}.{other + 1}2")
        else:
            assert answers.equivalent(text, "5") in (True, False)
            assert not answers.equivalent(draw.choice("{(") * 5000 + text, "5")

    return Case(f"way {way}: {text!r}", False, attempt)
