"""Records as ids: pieces that grow, EOS where it belongs, sampled equals encoded."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.lm import tokenizer
from stepjax.lm.stops import compile_stops
from stepjax.prompts import Templates
from stepjax.propose import CandidateParser
from stepjax.records import Comparison, Solution

PROBLEM = "8*7+4*4+2*3+1"
STEPS = ("Step 1: 8*7+4=0", "Step 2: 0*4+2=2", "Step 3: 2*3+1=7; \\boxed{7}")
WRONG = ("Step 1: 5*7+4=9", "Step 2: 0*4+2=5", "Step 3: 2*3+1=1; \\boxed{1}")
# Prose, for a tokenizer that fuses a full stop with the newline after it.
PROSE = (
    "Step 1: Ann has 12 apples and eats 3.",
    "Step 2: We subtract:\n  12 - 3 = 9.",
    "Step 3: So the answer is \\boxed{9}.",
)


@pytest.fixture(scope="session")
def prose_codec(tmp_path_factory):
    """Default templates with a small byte-level BPE as in the Qwen family."""
    model = tokenizers.Tokenizer(models.BPE())
    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    texts = ["\n".join(PROSE) + "\n"] * 8 + [prompts.JUDGE, prompts.SOLVE]
    model.train_from_iterator(texts, trainer)
    directory = tmp_path_factory.mktemp("prose")
    model.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["eos_token"] = "<|endoftext|>"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    codec = Codec(tokenizer.load(directory), Templates())
    # This is what makes it worth testing: a token may hold a newline and other text.
    assert b".\n" in codec.tokenizer.token_bytes
    return codec


@pytest.fixture(params=["world", "prose"])
def codec_and_steps(request, codec, prose_codec):
    """(codec, right steps, wrong steps)."""
    if request.param == "world":
        return codec, STEPS, WRONG
    wrong = tuple(text.replace("9", "8").replace("12", "15") for text in PROSE)
    return prose_codec, PROSE, wrong


def rendered(templates, problem, steps, a, b):
    """The judge's prompt, by plain replacement."""
    text = templates.judge.replace("{problem}", problem)
    text = text.replace("{steps}\n", "".join(f"{step}\n" for step in steps))
    return text.replace("{a}", a).replace("{b}", b)


def test_solution_is_its_text_and_ends_with_eos_only(codec_and_steps):
    codec, steps, _ = codec_and_steps
    eos = codec.tokenizer.eos_id
    prompt, pieces = codec.solution(Solution("s", PROBLEM, steps, "7"))
    solve = codec.templates.solve.replace("{problem}", PROBLEM)
    assert codec.tokenizer.decode(prompt) == solve
    for text, ids in zip(steps[:-1], pieces[:-1], strict=True):
        assert codec.tokenizer.decode(ids) == text + "\n"
        assert ids == codec.step(text)
    assert pieces[-1] == (*codec.step(steps[-1]), eos)
    assert codec.tokenizer.decode(pieces[-1]) == steps[-1]
    whole = [*prompt, *sum(pieces, ())]
    assert whole.count(eos) == 1
    # The pieces are what one pass over the whole text gives.
    joint = codec.tokenizer.encode_prompt(solve + "\n".join(steps))
    assert whole == [*joint, eos]


def test_box_before_the_last_step_does_not_swallow_its_newline(codec):
    steps = ("Step 1: \\boxed{3} is not all", "Step 2: 3+4=7; \\boxed{7}")
    prompt, pieces = codec.solution(Solution("s", PROBLEM, steps, "7"))
    text = codec.tokenizer.decode(prompt + sum(pieces, ()))
    assert text == f"{PROBLEM}\n" + "\n".join(steps)
    assert [ids.count(codec.tokenizer.eos_id) for ids in pieces] == [0, 1]


def test_solution_checks_the_step_format(codec):
    row = Solution("s", PROBLEM, ("Step 1: 8*7+4=0", "Step 3: 2*3+1=7"), "7")
    with pytest.raises(ValueError, match="step 2 begins with 'Step 3"):
        codec.solution(row)


def test_contexts_grow_by_pieces(codec_and_steps):
    codec, steps, _ = codec_and_steps
    ids = [codec.step(text) for text in steps]
    full = codec.judge_context(PROBLEM, ids)
    contexts = [codec.judge_context(PROBLEM, ids[:count]) for count in range(4)]
    sizes = [len(context) for context in contexts]
    assert sizes == sorted(set(sizes))
    head = prompts.judge_pieces(codec.templates, PROBLEM).head
    for count, context in enumerate(contexts):
        assert context == full[: len(context)]
        text = head + "".join(f"{step}\n" for step in steps[:count])
        assert codec.tokenizer.decode(context) == text
        if count < 3:  # as one pass over the whole text gives
            assert list(context) == codec.tokenizer.encode_prompt(text)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_comparison_is_the_rendered_prompt_and_response(codec_and_steps, number):
    codec, right, wrong = codec_and_steps
    eos = codec.tokenizer.eos_id
    for a, b, side in ((right, wrong, "A"), (wrong, right, "B")):
        row = Comparison(
            "c",
            PROBLEM,
            right[:number],
            a[number],
            b[number],
            side,
            "Check: 0 (A) 9 (B) 8*7=6 ",
        )
        prompt, response = codec.comparison(row)
        assert codec.tokenizer.decode(prompt) == rendered(
            codec.templates, PROBLEM, right[:number], a[number], b[number]
        )
        assert codec.tokenizer.decode(response) == row.explanation + f"[[{side}]]"
        assert eos not in prompt  # not even behind a final candidate
        assert response[-1] == eos and response.count(eos) == 1
        context = codec.judge_context(PROBLEM, list(map(codec.step, right[:number])))
        question = codec.judge_question(codec.step(a[number]), codec.step(b[number]))
        assert prompt == context + question


def test_comparison_checks_the_step_format(codec):
    row = Comparison("c", PROBLEM, ("8*7+4=0",), STEPS[1], WRONG[1], "A")
    with pytest.raises(ValueError, match="expected the marker 'Step 1: '"):
        codec.comparison(row)


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("explanation", ["", "Check: 9 ", "It is [[A]], no: "])
def test_verdict_tokens_cover_the_verdict_and_eos(codec_and_steps, side, explanation):
    codec, right, wrong = codec_and_steps
    row = Comparison("c", PROBLEM, (), right[0], wrong[0], side, explanation)
    response = codec.comparison(row)[1]
    count = codec.verdict_tokens(response, f"[[{side}]]")
    decode = codec.tokenizer.decode
    assert decode(response[-count:]).strip() == f"[[{side}]]"
    assert f"[[{side}]]" not in decode(response[-count + 1 :])
    assert decode(codec.verdict(side)) == f"[[{side}]]"


def test_verdict_tokens_of_the_world(codec):
    eos = codec.tokenizer.eos_id
    line = codec.tokenizer.encode_line
    assert codec.verdict_tokens([*line("Check: 0 [[A]]"), eos], "[[A]]") == 2
    spelled = [line(c)[0] for c in "[[B]]"]
    assert codec.verdict_tokens([*line("Check: "), *spelled, eos], "[[B]]") == 6
    assert codec.verdict_tokens([*spelled[2:], eos], "[[B]]") == 4  # all there is


def test_strip_and_text(codec_and_steps):
    codec, steps, _ = codec_and_steps
    eos = codec.tokenizer.eos_id
    ids = codec.step(steps[2])
    assert codec.strip((*ids, eos)) == codec.strip(ids) == ids
    assert codec.strip((*ids, eos, eos)) == (*ids, eos)  # one, at the end
    assert codec.strip(()) == () and codec.text(()) == ""
    assert codec.text((*ids, eos)) == codec.text(ids) == steps[2]
    assert codec.text(codec.step(steps[0])) == steps[0]
    assert codec.text((*codec.step(steps[0]), *codec.step(steps[1]))) == "\n".join(
        steps[:2]
    )


def test_sampled_and_encoded_ids_of_a_step_agree(codec_and_steps):
    codec, steps, _ = codec_and_steps
    eos = codec.tokenizer.eos_id
    parser, known = CandidateParser(codec), codec.tokenizer
    table = compile_stops(known.token_bytes, parser.stops, known.stop_ids)
    for number, text in enumerate(steps, start=1):
        final = number == len(steps)
        tail = [eos] if final else codec.tokenizer.encode_line(f"Step {number + 1}: ")
        sampled = [*codec.step(text), *tail]
        # The stop table halts it: somewhere in the marker that follows, or at EOS.
        state, row = 0, []
        for token in sampled:
            row.append(token)
            state = table[state, token]
            if state == len(table) - 1:
                break
        assert state == len(table) - 1
        made = parser.proposal(number, [row, row], [True, True], np.zeros((2, 200)))
        (candidate,) = made.candidates
        assert candidate.ids == (*codec.step(text), *([eos] if final else []))
        assert (candidate.text, candidate.count) == (text, 2)
        assert candidate.finished == final
        # The judge reads both alike, in its context and as a candidate.
        encoded = codec.step(text)
        assert codec.judge_question(candidate.ids, encoded) == codec.judge_question(
            encoded, candidate.ids
        )
        assert codec.judge_context(PROBLEM, [candidate.ids]) == codec.judge_context(
            PROBLEM, [encoded]
        )


def test_final_step_reads_alike_however_it_ended(codec):
    other, bare = codec.step(WRONG[2]), codec.step(STEPS[2])
    endings = [(), tuple(codec.newline), (codec.tokenizer.eos_id,)]
    questions = {codec.judge_question((*bare, *end), other) for end in endings}
    assert len(questions) == 1
    contexts = {codec.judge_context(PROBLEM, [(*bare, *end)]) for end in endings}
    assert len(contexts) == 1


def test_bad_templates_are_refused(codec):
    with pytest.raises(ValueError, match="'judge' has {b} 0"):
        Codec(codec.tokenizer, Templates(judge="{problem}\n{steps}\n{a}\n"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ""),
        (("right", "wrong"), "right|wrong|wrong"),
        (("brighter",), "brighter"),
        (("é",), "é"),
        (("ght", "cl"), ""),  # only parts of words
        (("r.ght",), ""),  # no pattern, a word
        (("wrong", "wrong step"), "wrong|wrong step"),
    ],
)
def test_words_covers_whole_words_and_nothing_else(prose_codec, words, expected):
    codec = prose_codec
    text = "Step 1: brighter is right, é éclair “wrong”—x. wrong step"
    ids = codec.tokenizer.encode_line(text)
    inside = codec.words(ids, words)
    assert len(inside) == len(ids)
    groups = itertools.groupby(zip(inside, ids, strict=True), key=lambda pair: pair[0])
    found = [codec.tokenizer.decode([i for _, i in g]) for hit, g in groups if hit]
    assert "|".join(text.strip() for text in found) == expected
