"""Prompts of instruct models: the same ids as transformers' own, for each family."""

import chat_tokenizers
import numpy as np
import pytest
from transformers import AutoTokenizer

from stepjax import config, prompts, settings, sft, srlm
from stepjax.codec import Codec
from stepjax.initial_data import prm
from stepjax.lm import tokenizer
from stepjax.lm.stops import compile_stops
from stepjax.prompts import Templates
from stepjax.propose import CandidateParser
from stepjax.records import Comparison, Problem, Solution, StepLabels
from stepjax.run import checks

CHAT = Templates(chat="template")
PROBLEM = "Ann has 12 apples and eats 3.\nHow many are left?"
STEPS = ("Step 1: Ann has 12 apples.", "Step 2: So 12 - 3 = \\boxed{9}.")
WRONG = "Step 2: So 12 - 3 = 8."
ENDS = {"smollm": "<|im_end|>", "qwen": "<|im_end|>", "llama3": "<|eot_id|>"}
ENDS |= dict.fromkeys(("metaspace", "prepend", "unigram"), "</s>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family → the folder of its tokenizer."""
    root = tmp_path_factory.mktemp("chat")
    return {
        family: chat_tokenizers.write(family, root / family)
        for family in chat_tokenizers.FAMILIES
    }


@pytest.fixture(params=list(ENDS))
def family(request):
    return request.param


@pytest.fixture
def chat_codec(folders, family):
    return Codec(tokenizer.load(folders[family]), CHAT)


@pytest.fixture
def expected(folders, family):
    """Returns the ids that transformers gives to a user's message."""
    auto = AutoTokenizer.from_pretrained(str(folders[family]), local_files_only=True)

    def ids(text):
        message = [{"role": "user", "content": text}]
        made = auto.apply_chat_template(message, add_generation_prompt=True)
        return list(made["input_ids"])

    return ids


@pytest.mark.parametrize("problem", [PROBLEM, "  7?\n", "{problem} {steps}\n{a}\n"])
def test_solver_prompts_are_those_of_transformers(chat_codec, expected, problem):
    text = prompts.solve_prompt(CHAT, problem)
    assert list(chat_codec.solve_prompt(problem)) == expected(text)


@pytest.mark.parametrize("solve", ["{problem}\n", "  {problem} is it\n\n"])
def test_short_solver_prompts_are_those_of_transformers(
    folders, family, expected, solve
):
    codec = Codec(
        tokenizer.load(folders[family]), Templates(solve=solve, chat="template")
    )
    for problem in (PROBLEM, " 7? "):
        ids = list(codec.solve_prompt(problem))
        assert ids == expected(solve.replace("{problem}", problem))


@pytest.mark.parametrize("count", [0, 1])
def test_judge_prompts_are_those_of_transformers(chat_codec, expected, count):
    head, before_a, between, tail = prompts.judge_pieces(CHAT, PROBLEM)
    steps = "".join(step + "\n" for step in STEPS[:count])
    # A final step is encoded without its newline, as it is sampled; see `Codec.step`.
    right = STEPS[0] if count == 0 else "Step 2: So 12 - 3 = 9."
    text = f"{head}{steps}{before_a}{right}\n{between}{WRONG}\n{tail}"
    context = chat_codec.judge_context(
        PROBLEM, list(map(chat_codec.step, STEPS[:count]))
    )
    question = chat_codec.judge_question(chat_codec.step(right), chat_codec.step(WRONG))
    assert list(context + question) == expected(text)
    whole = chat_codec.judge_context(PROBLEM, list(map(chat_codec.step, STEPS)))
    assert whole[: len(context)] == context  # caches can be extended


def test_bos_is_there_as_often_as_the_template_writes_it(folders, family, chat_codec):
    known = tokenizer.load(folders[family])
    ids = chat_codec.solve_prompt(PROBLEM)
    assert ids.count(known.bos_id) == (family == "llama3")
    context = chat_codec.judge_context(PROBLEM, ())
    assert context.count(known.bos_id) == (family == "llama3")
    plain = Codec(known, Templates()).solve_prompt(PROBLEM)
    assert plain[:1] == (known.bos_id,) or known.bos_id is None


def test_end_of_turn_ends_responses_and_samples(folders, family, chat_codec):
    known = tokenizer.load(folders[family])
    end = known._backend.convert_tokens_to_ids(ENDS[family])
    assert chat_codec.tokenizer.eos_id == chat_codec.tokenizer.stop_ids[0] == end
    assert set(known.stop_ids) <= chat_codec.stop_ids and end in chat_codec.stop_ids
    prompt, steps = chat_codec.solution(Solution("s", PROBLEM, STEPS, "9"))
    assert [ids.count(end) for ids in steps] == [0, 1] and steps[-1][-1] == end
    row = Comparison("c", PROBLEM, STEPS[:1], STEPS[1], WRONG, "A", "Check. ")
    judge_prompt, response = chat_codec.comparison(row)
    assert response[-1] == end and response.count(end) == 1
    assert known.decode(response) == "Check. [[A]]"
    assert chat_codec.verdict_tokens(response, "[[A]]") < len(response)
    # A sampled step that ends the turn is the same ids, and final.
    parser = CandidateParser(chat_codec)
    table = compile_stops(
        known.token_bytes, parser.stops, chat_codec.tokenizer.stop_ids
    )
    assert table[0, end] == len(table) - 1
    made = parser.proposal(2, [steps[-1]], [True], np.zeros((1, 99)))
    assert made.candidates[0].ids == steps[-1] and made.candidates[0].finished
    assert prompt == chat_codec.solve_prompt(PROBLEM)
    assert end in prompt  # each template also ends the user's turn with it


def test_prompts_of_labels_and_ratings_go_through_the_template(chat_codec, expected):
    one = prm.context(chat_codec, prm.Solving(PROBLEM, ()))
    assert one == chat_codec.solve_prompt(PROBLEM)
    own = prm.context(chat_codec, prm.Solving(PROBLEM, ()), "Is it right?\n{problem}\n")
    assert list(own) == expected(f"Is it right?\n{PROBLEM}\n")
    row = StepLabels("l", PROBLEM, STEPS, (1.0, 0.0))
    tokens = prm.tree(chat_codec, row, "Is it right?\n{problem}\n").tokens
    assert tuple(tokens[: len(own)]) == own
    texts = srlm.Texts()
    rating = srlm.Rating("r", PROBLEM, STEPS, 4, "Good. ")
    prompt, response, _ = srlm.ratings(texts).example(chat_codec, rating)
    filled = texts.rate.replace("{problem}", PROBLEM)
    filled = filled.replace("{solution}", "\n".join(STEPS))
    assert list(prompt) == expected(filled)
    assert response[-1] == chat_codec.tokenizer.eos_id
    assert list(chat_codec.message("Judge it: {problem}")) == expected(
        "Judge it: {problem}"
    )


def test_budgets_count_the_template(chat_codec):
    rows = {"test": [Problem("long", PROBLEM, "9")]}
    solve = len(chat_codec.solve_prompt(PROBLEM))
    judged = len(chat_codec.judge_context(PROBLEM, ()))
    c = config.default()
    c.search.max_step_tokens = 5
    c.search.context_tokens, c.judge.context_tokens = solve + 5, judged
    checks.check_budgets(settings.from_config(c), chat_codec, rows)
    c.search.context_tokens -= 1
    with pytest.raises(ValueError, match=f"need {solve + 5} tokens; expected at most"):
        checks.check_budgets(settings.from_config(c), chat_codec, rows)
    c.search.context_tokens, c.judge.context_tokens = solve + 5, judged - 1
    with pytest.raises(ValueError, match=f"the judge's prompt has {judged} tokens"):
        checks.check_budgets(settings.from_config(c), chat_codec, rows)


def test_settings_of_a_run_reach_the_codec():
    c = config.default()
    texts = settings.templates(settings.from_config(c).texts, Templates())
    assert texts == Templates() and texts.chat == "none"
    c.prompts.chat = "template"
    assert settings.templates(settings.from_config(c).texts, Templates()) == CHAT
    c.prompts.chat = "chatml"
    with pytest.raises(ValueError, match="prompts.chat='chatml'; expected one of"):
        settings.templates(settings.from_config(c).texts, Templates())


def test_sft_trains_on_steps_and_the_end_of_turn(chat_codec):
    tree = sft.solution_tree(chat_codec, Solution("s", PROBLEM, STEPS, "9"))
    trained = tree.tokens[tree.scored[tree.weight > 0]].tolist()
    assert chat_codec.tokenizer.decode(trained) == "\n".join(STEPS)
    assert trained[-1] == chat_codec.tokenizer.eos_id


def refused(folder, template, words):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError) as caught:
        Codec(tokenizer.load(folder), CHAT)
    assert words in str(caught.value)
    assert "prompts.chat='none'" in str(caught.value) and "expected" in str(
        caught.value
    )


def test_chat_templates_that_cannot_be_used_are_refused(tmp_path):
    folder = chat_tokenizers.write("smollm", tmp_path / "smollm", template="")
    with pytest.raises(
        ValueError, match="has no chat template; expected chat_template"
    ):
        Codec(tokenizer.load(folder), CHAT)
    content = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    refused(folder, content, "writes '' after a reply; expected a special token")
    refused(folder, content * 2, "writes a message 2 times")
    refused(folder, "{{ raise_exception('no') }}", "fails (no); expected it to accept")
    refused(folder, "{{ nothing.at.all }}", "fails (")
    changed = content.replace("m['content']", "m['content'].replace(' ', '_')")
    refused(folder, changed + "<|im_end|>", "or without the whitespace at its ends")
    # Behind a special token, this kind of tokenizer puts a space in front of "Step".
    folder = chat_tokenizers.write("prepend", tmp_path / "prepend", template="")
    bare = chat_tokenizers.LLAMA2 + "{{ bos_token }}"
    refused(folder, bare, "at the start of a line. Set prompts.chat='none', and write")


@pytest.mark.parametrize("name", ["metaspace", "prepend", "unigram"])
def test_replies_may_begin_behind_the_template_without_a_newline(tmp_path, name):
    folder = chat_tokenizers.write(name, tmp_path, template=chat_tokenizers.LLAMA2)
    codec = Codec(tokenizer.load(folder), CHAT)
    prompt, steps = codec.solution(Solution("s", f" {PROBLEM}", STEPS, "9"))
    auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    message = {"role": "user", "content": prompts.solve_prompt(CHAT, f" {PROBLEM}")}
    made = auto.apply_chat_template([message], add_generation_prompt=True)
    assert list(prompt) == made["input_ids"] and prompt.count(1) == 1
    text = codec.tokenizer.decode(prompt + sum(steps, ()))
    assert text.endswith("Solution: [/INST]" + "\n".join(STEPS))


WORDS = 'A "solver" \\n of {{x}} and %} {problem}\n\u00e9\U0001f600 #} goes on\n'


@pytest.mark.parametrize("chat", prompts.CHATS)
@pytest.mark.parametrize("solve", [prompts.SOLVE, "{problem}\n", WORDS])
def test_the_template_of_an_export_writes_the_prompt(
    folders, family, tmp_path, chat, solve
):
    codec = Codec(tokenizer.load(folders[family]), Templates(solve=solve, chat=chat))
    folder = chat_tokenizers.write(family, tmp_path)
    template = codec.tokenizer.chat_template(solve, around=chat == "template")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    for problem in (PROBLEM, '7 {a} "x" {{ y }}?'):
        message = [{"role": "user", "content": problem}]
        made = auto.apply_chat_template(message, add_generation_prompt=True)
        assert tuple(made["input_ids"]) == codec.solve_prompt(problem)
    if chat == "template":  # the exported model as another M0: no prompt in a prompt
        again = Codec(tokenizer.load(folder), codec.templates)
        assert again.solve_prompt(PROBLEM) == codec.solve_prompt(PROBLEM)
        wrapped = again.tokenizer.chat_template(solve, around=True)
        assert wrapped == template


def test_the_template_of_an_export_leaves_other_messages_alone(folders, tmp_path):
    own = tokenizer.load(folders["smollm"])
    folder = chat_tokenizers.write("smollm", tmp_path, template="")
    template = own.chat_template("Solve {problem}\n", around=True)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
    ]
    assert auto.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nSolve 1+1?\n<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n"
    )


def test_templates_with_the_date_do_not_change_overnight(tmp_path):
    dated = chat_tokenizers.CHATML.replace(
        "You help.", "{{ date_string or strftime_now('%d %b %Y') }}"
    )
    folder = chat_tokenizers.write("qwen", tmp_path, template=dated)
    codec = Codec(tokenizer.load(folder), CHAT)
    assert "26 Jul 2024" in codec.tokenizer.decode(codec.solve_prompt(PROBLEM))
    # An export writes the same date.
    template = codec.tokenizer.chat_template(prompts.SOLVE, around=True)
    (folder / "chat_template.jinja").write_text(template)
    auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    message = [{"role": "user", "content": PROBLEM}]
    made = auto.apply_chat_template(message, add_generation_prompt=True)
    assert tuple(made["input_ids"]) == codec.solve_prompt(PROBLEM)
