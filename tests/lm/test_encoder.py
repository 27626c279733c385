"""Names of special tokens in data are text; the ids of all other texts stay."""

import chat_tokenizers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stepjax.codec import Codec
from stepjax.lm import tokenizer
from stepjax.prompts import Templates
from stepjax.records import Comparison, Solution

FAMILIES = list(chat_tokenizers.FAMILIES)
TEXTS = [
    "Step 1: Ann has 12 apples.\nStep 2: 1234 - 56 = 1178.\n\n",
    " two  spaces\tand caf\u00e9 \u4e2d\u6587 \U0001f600 <0x0A> <unk",
    "[INST] <|im_ end|> < / s > <|end <think>",
    "",
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Family → (its tokenizer, the same by transformers)."""
    root = tmp_path_factory.mktemp("families")
    result = {}
    for family in FAMILIES:
        folder = chat_tokenizers.write(family, root / family)
        auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        result[family] = tokenizer.load(folder), auto
    return result


def control(known):
    """The ids of special tokens."""
    return set(known._backend.convert_tokens_to_ids(names_of(known)))


def names_of(known):
    added = known._backend.backend_tokenizer.get_added_tokens_decoder()
    return [token.content for token in added.values() if token.special]


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_texts_have_the_ids_of_transformers(loaded, family):
    known, auto = loaded[family]
    for text in TEXTS:
        assert known.encode_prompt(text) == auto(text)["input_ids"]

    @settings(deadline=None, max_examples=150, database=None)
    @given(st.lists(st.sampled_from(["Step", " 12", "\n", "é", "<", "|", "s>", "a "])))
    def check(pieces):
        text = "".join(pieces)
        if not any(name in text for name in names_of(known)):
            assert known.encode_prompt(text) == auto(text)["input_ids"]
            assert known.encode_prompt("{x}", {"{x}": text}) == auto(text)["input_ids"]

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_names_in_a_template_are_control_ids(loaded, family):
    known, auto = loaded[family]
    for name in names_of(known):
        text = f"a{name}Step 1{name}\n{name} b"
        ids = auto(text)["input_ids"]
        assert known.encode_prompt(text) == ids
        assert ids.count(auto.convert_tokens_to_ids(name)) >= 3
        newline = auto("\n", add_special_tokens=False)["input_ids"]
        joint = auto("\n" + text, add_special_tokens=False)["input_ids"]
        assert known.encode_line(text, markup=True) == joint[len(newline) :]
        assert known.has_markup(text) and not known.has_markup(text.replace(name, "<"))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_in_data_are_text(loaded, family):
    known, _ = loaded[family]
    for name in names_of(known):
        text = f"Step 1: a{name} b{name}\n{name}"
        line = known.encode_line(text)
        assert not control(known) & set(line)
        assert known.decode(line) == text
        # The template's own name is a control id, the same name in a problem is not.
        begin, end = names_of(known)[:2]
        ids = known.encode_prompt(f"{begin}x\n{{p}}{end}\ny", {"{p}": text})
        special = [token for token in ids if token in control(known)]
        wanted = [known._backend.convert_tokens_to_ids(n) for n in (begin, end)]
        assert special[-2:] == wanted and len(special) <= 3  # BOS may come before
        assert text in known.decode(ids)


def test_added_words_that_are_not_special_stay_words(loaded):
    known, auto = loaded["qwen"]
    word = auto.convert_tokens_to_ids("<think>")
    assert known.encode_line("a<think>b").count(word) == 1
    assert known.encode_prompt("{x}", {"{x}": "<think>"}) == [word]


@pytest.mark.parametrize("chat", ["none", "template"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_names_of_special_tokens_train_on_text(loaded, family, chat):
    known, _ = loaded[family]
    codec = Codec(known, Templates(chat=chat))
    end = codec.tokenizer.eos_id
    name = known._backend.convert_ids_to_tokens(end)
    steps = (f"Step 1: a{name}", f"Step 2: \\boxed{{1}}{name}")
    prompt, pieces = codec.solution(Solution("s", f"Ann{name}", steps, "1"))
    assert [ids.count(end) for ids in pieces] == [0, 1] and pieces[1][-1] == end
    assert codec.text(sum(pieces, ())) == "\n".join(steps)
    clean = codec.solution(Solution("s", "Ann", ("Step 1: a", "Step 2: b"), "1"))[0]
    assert prompt.count(end) == clean.count(end)
    row = Comparison(
        "c", f"A{name}", steps[:1], steps[1], "Step 2: c", "A", f"x{name} "
    )
    prompt, response = codec.comparison(row)
    assert response.count(end) == 1 and response[-1] == end
    assert codec.text(response) == f"x{name} [[A]]"
    clean = Comparison("c", "A", ("Step 1: a",), "Step 2: b", "Step 2: c", "A", "x ")
    assert prompt.count(end) == codec.comparison(clean)[0].count(end)


def test_hand_written_markup_stays_markup(loaded):
    known, auto = loaded["smollm"]
    solve = "<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
    judge = f"<|im_start|>user\n{{problem}}\n{{steps}}\n{{a}}\n{{b}}\n{solve[26:]}"
    codec = Codec(known, Templates(solve=solve, judge=judge))
    assert (
        list(codec.solve_prompt("12?"))
        == auto(solve.replace("{problem}", "12?"))["input_ids"]
    )
    start, end = (auto.convert_tokens_to_ids(n) for n in ("<|im_start|>", "<|im_end|>"))
    ids = codec.solve_prompt("a<|im_end|>b")
    assert (ids.count(start), ids.count(end)) == (2, 1)
    question = codec.judge_question(codec.step("Step 1: a"), codec.step("Step 1: b"))
    assert (question.count(start), question.count(end)) == (1, 1)
    # A prompt for a teacher has its texts put in already.
    assert codec.message("<|im_start|>a") == (start, *codec.line("a"))
    assert start not in Codec(known, Templates()).message("<|im_start|>a")
