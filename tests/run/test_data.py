"""The first stage: splits, templates, tokenizer, and the checks made early."""

import dataclasses
import json
import random

import pytest
from runs import make_mesh
from tiny_config import get_config

from stepjax import config, judge, prompts, records
from stepjax.lm import hf_config, sharding
from stepjax.lm import model as lm
from stepjax.records import Comparison, Problem, Question, Solution
from stepjax.run import checks, data
from stepjax.settings import from_config, model_config, templates
from stepjax.worlds import arithmetic, arithmetic_data

TEXTS = arithmetic.templates()


def settings(**changes):
    """The tiny run's settings; "__" stands for a dot."""
    c = get_config()
    values = {name.replace("__", "."): value for name, value in changes.items()}
    c.update_from_flattened_dict(values)
    return c


def typed(**changes):
    return from_config(settings(**changes))


def texts_of(c):
    """The templates of a run with these settings."""
    return templates(from_config(c).texts, data.world_templates(c.data.world))


def read(folder):
    return {path.stem: path.read_text("utf-8") for path in folder.glob("*.jsonl")}


# Data of the world.


def test_the_worlds_data_is_split_and_the_same_every_time(tmp_path):
    counts = data.make_data(typed(), TEXTS, tmp_path / "a")
    expected = {"ift": 96, "eft": 192, "heldout": 12, "test": 24}
    assert counts == expected | {"questions_1": 24, "questions_2": 24}
    files = read(tmp_path / "a")
    assert {name: text.count("\n") for name, text in files.items()} == counts
    data.make_data(typed(), TEXTS, tmp_path / "b")
    assert read(tmp_path / "b") == files
    data.make_data(typed(seed=1), TEXTS, tmp_path / "c")
    other = read(tmp_path / "c")
    assert all(other[name] != text for name, text in files.items())
    problems = {
        name: {json.loads(line)["problem"] for line in text.splitlines()}
        for name, text in files.items()
    }
    assert sum(map(len, problems.values())) == 96 + 96 + 6 + 24 + 24 + 24
    assert len(set().union(*problems.values())) == 270


def test_question_files_have_no_answers(tmp_path):
    data.make_data(typed(), TEXTS, tmp_path)
    for name in ("questions_1", "questions_2"):
        rows = [json.loads(line) for line in read(tmp_path)[name].splitlines()]
        assert len(rows) == 24
        assert all(sorted(row) == ["id", "problem"] for row in rows)
    with pytest.raises(ValueError, match="missing field 'answer'"):
        records.read_jsonl(tmp_path / "questions_1.jsonl", Problem)


@pytest.mark.parametrize("questions", [(24,), (24, 0), (24, "many"), ()])
def test_a_number_of_questions_for_every_iteration(tmp_path, questions):
    with pytest.raises(ValueError, match="iterations=2; expected one number above 0"):
        data.make_data(typed(data__questions=questions), TEXTS, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    data.make_data(typed(data__questions=(3, 2, 9)), TEXTS, tmp_path)
    assert len(records.read_jsonl(tmp_path / "questions_2.jsonl", Question)) == 2
    assert not (tmp_path / "questions_3.jsonl").exists()


# Data of files.


@pytest.fixture
def files(tmp_path):
    """Settings over files of 5 IFT rows, 4 EFT problems, 9 questions and 3 tests."""
    problems = arithmetic.problems(21, seed=3, operations=2)
    rng = random.Random(0)
    rows = {
        "ift": [
            arithmetic_data.solution(f"i{n}", p, (), rng)
            for n, p in enumerate(problems[:5])
        ],
        "eft": [
            row
            for n, p in enumerate(problems[5:9])
            for row in arithmetic_data.comparisons(f"e{n}", p, rng)
        ],
        # The first six are those of the IFT rows and of one EFT problem.
        "question_file": [
            Question(f"q{n}", p) for n, p in enumerate([*problems[:6], *problems[9:18]])
        ],
        "test": [
            Problem(f"t{n}", p, arithmetic.solve(p).answer)
            for n, p in enumerate(problems[18:])
        ],
    }
    c = settings(data__world="", data__questions=(4, 5), data__heldout_count=1)
    for name in ("ift", "eft", "test"):
        c.data[f"{name}_count"] = 0
    for name, values in rows.items():
        c.data[name] = str(tmp_path / f"{name}.jsonl")
        records.write_jsonl(c.data[name], values)
    return c, rows


def test_files_are_split(files, tmp_path):
    c, rows = files
    counts = data.make_data(from_config(c), TEXTS, tmp_path / "data")
    expected = {"ift": 5, "eft": 6, "heldout": 2, "test": 3}
    assert counts == expected | {"questions_1": 4, "questions_2": 5}

    def made(name, kind):
        return records.read_jsonl(tmp_path / "data" / f"{name}.jsonl", kind)

    assert (
        made("ift", Solution) == rows["ift"] and made("test", Problem) == rows["test"]
    )
    assert made("eft", Comparison) == rows["eft"][:6]  # both orders of three problems
    assert made("heldout", Comparison) == rows["eft"][6:]
    # Questions that are in another split are passed over.
    asked = made("questions_1", Question) + made("questions_2", Question)
    assert asked == rows["question_file"][6:]


def test_counts_take_the_first_rows(files, tmp_path):
    c, rows = files
    c.data.ift_count, c.data.eft_count, c.data.test_count = 2, 1, 2
    c.data.questions = (4, 8)
    counts = data.make_data(from_config(c), TEXTS, tmp_path / "data")
    expected = {"ift": 2, "eft": 2, "heldout": 2, "test": 2}
    assert counts == expected | {"questions_1": 4, "questions_2": 8}
    asked = records.read_jsonl(tmp_path / "data/questions_1.jsonl", Question)
    # Three IFT rows that are not used are questions now.
    assert asked == [*rows["question_file"][2:5], rows["question_file"][6]]


def test_too_few_questions(files, tmp_path):
    c, _ = files
    c.data.questions = (5, 5)
    words = r"has 9 questions .* at least 10 for data.questions=\(5, 5\). Lower"
    with pytest.raises(ValueError, match=words):
        data.make_data(from_config(c), TEXTS, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_question_asked_twice_is_refused(files, tmp_path):
    c, rows = files
    again = Question("again", rows["question_file"][6].problem)
    rows["question_file"][14] = again
    records.write_jsonl(c.data.question_file, rows["question_file"])
    words = f"{again.problem!r} is in questions_1 and in questions_2; expected every"
    with pytest.raises(ValueError) as error:
        data.make_data(from_config(c), TEXTS, tmp_path / "data")
    assert words.replace("'", "") in str(error.value).replace("'", "")


def test_a_problem_in_two_splits():
    def problem(name, text):
        return Problem(name, text, "1")

    shared = {"ift": [problem("a", "1+1")], "eft": [problem("b", "1+1")]}
    checks.check_disjoint(shared | {"test": [problem("c", "1+2")]})
    for name in ("heldout", "test", "questions_1"):
        with pytest.raises(ValueError) as error:
            checks.check_disjoint(shared | {name: [problem("c", "1+1")]})
        words = f"problem '1+1' is in M1 training and in {name}; expected every problem"
        assert words in str(error.value) and "Remove it" in str(error.value)


def test_gsm8k_files(tmp_path):
    answer = "She has <<2+3=5>>5.\nThen <<5-1=4>>4.\n#### 4"
    with open(tmp_path / "train.jsonl", "w") as file:
        for n in range(6):
            row = {"question": f"Question {n}?", "answer": answer}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"question": "Another?", "answer": answer}) + "\n"
    )
    steps = ("Step 1: She has 5.", "Step 2: Then 4.")
    (tmp_path / "eft.jsonl").write_text("")
    records.write_jsonl(
        tmp_path / "eft.jsonl",
        [Comparison("e", "Which?", (), steps[0], "Step 1: No.", "A")],
    )
    c = settings(data__world="", data__questions=(2, 1), data__ift_count=3)
    c.data.heldout_count = c.data.test_count = c.data.eft_count = 0
    c.data.ift = c.data.question_file = str(tmp_path / "train.jsonl")
    c.data.test, c.data.eft = str(tmp_path / "test.jsonl"), str(tmp_path / "eft.jsonl")
    c.data.ift_format = c.data.question_format = c.data.test_format = "gsm8k"
    data.make_data(from_config(c), TEXTS, tmp_path / "data")
    ift = records.read_jsonl(tmp_path / "data/ift.jsonl", Solution)
    assert [row.problem for row in ift] == ["Question 0?", "Question 1?", "Question 2?"]
    assert ift[0].steps[0] == steps[0] and "\\boxed{4}" in ift[0].steps[1]
    for number, texts in ((1, ["Question 3?", "Question 4?"]), (2, ["Question 5?"])):
        path = tmp_path / f"data/questions_{number}.jsonl"
        assert [row.problem for row in records.read_jsonl(path, Question)] == texts
        assert "answer" not in path.read_text()
    (test,) = records.read_jsonl(tmp_path / "data/test.jsonl", Problem)
    assert (test.problem, test.answer) == ("Another?", "4")
    (tmp_path / "test.jsonl").write_text('{"question": "Another?"}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl:1: "):
        data.make_data(from_config(c), TEXTS, tmp_path / "data")


# Settings.


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("search.on_tie", "append", "Append", "one of ('back', 'append')"),
        ("judge.mode", "logprob", "", "one of ('generate', 'logprob')"),
        ("dpo.reference", "live", "dead", "one of ('precomputed', 'live')"),
        ("data.world", "arithmetic", "chess", "one of ('', 'arithmetic')"),
        ("judge.score", "sum", "wins", f"one of {judge.SCORES}"),
        ("seed", 2**32 - 1, 2**32, "below 2**32"),
        ("seed", 0, -1, "at least 0"),
        ("iterations", 0, -1, "at least 0"),
        ("data.test_count", 0, -5, "at least 0"),
        ("train.log_every", 1, 0, "at least 1"),
        ("train.micro_batches", 1, 0, "at least 1"),
        ("search.width", 2, 1, "at least 2"),
        ("search.temperature", 0.0, -0.5, "at least 0"),
        ("search.top_p", 1.0, 1.01, "above 0 and at most 1"),
        ("judge.top_p", 0.01, 0.0, "above 0 and at most 1"),
        ("judge.rows", 1, 0, "at least 1"),
        ("dpo.batch_size", 1, 0, "at least 1"),
        ("dpo.beta", 0.01, 0.0, "above 0"),
        ("judge.by", "oracle", "me", "one of ('self', 'random', 'oracle')"),
        ("judge.kind", "comparisons", "page", "one of ('comparisons', 'ratings')"),
        ("improve_by", "dpo", "luck", "one of ('dpo', 'sft')"),
        ("pairs.min_margin", 1, 0, "at least 1"),
        ("dpo.label_smoothing", 0.49, 0.5, "0 to below 0.5"),
    ],
)
def test_settings_out_of_range(name, good, bad, words):
    c = settings()
    c.update_from_flattened_dict({name: good})
    checks.check_settings(from_config(c))
    c.update_from_flattened_dict({name: bad})
    with pytest.raises(ValueError) as error:
        checks.check_settings(from_config(c))
    assert str(error.value) == f"{name}={bad!r}; expected {words}."


RATED = {"judge.kind": "ratings"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (RATED, ""),
        ({"improve_by": "sft", "dpo.updates": (3, 4)}, ""),
        ({"judge.by": "oracle", "dpo.updates": (3, 4, 5)}, ""),
        ({"improve_by": "sft"}, "dpo.updates=(); expected one number above 0 for each"),
        ({"dpo.updates": (3,)}, "dpo.updates=(3,); expected one number above 0 for"),
        ({"dpo.updates": (3, 0)}, "dpo.updates=(3, 0); expected one number above 0"),
        ({"judge.score": "rating"}, "expected one of ('sum', 'consistent', 'single')"),
        (RATED | {"judge.schedule": "swiss"}, "'swiss'; expected 'full' with judge.k"),
        ({"judge.by": "oracle", "data.world": ""}, "'oracle' in the arithmetic world"),
        (RATED | {"judge.by": "random"}, "judge.by='random'; expected 'self' with jud"),
        (RATED | {"judge.mode": "logprob"}, "judge.mode='logprob'; expected 'generate"),
        (RATED | {"pairs.best_beats_all": True}, "='ratings': ratings compare nothing"),
    ],
)
def test_settings_of_controls_fit_together(changes, words):
    c = settings()
    c.update_from_flattened_dict(changes)
    if not words:
        checks.check_settings(from_config(c))
        return
    with pytest.raises(ValueError) as error:
        checks.check_settings(from_config(c))
    assert words in str(error.value)


def test_phases_out_of_range():
    c, rate = settings(), config.optimizer(1e-3)
    for phases, words in [
        ((), r"names of sft.phases=\[\]; expected at least one phase"),
        (2 * (config.phase("a"),), r"=\['a', 'a'\]; .*every name once"),
        ((config.phase("b", batch_size=0),), "batch_size of sft phase 'b'=0; expected"),
        (
            (config.phase("p", epochs=3, steps=9),),
            "'p' has epochs=3 and steps=9; expected exactly one of them above 0",
        ),
        (
            (config.phase(optimizer=config.optimizer(1.0, "step")),),
            "schedule='step'; ex",
        ),
    ]:
        c.sft.phases = phases
        with pytest.raises(ValueError, match=words):
            checks.check_settings(from_config(c))
    c.sft.phases = (config.phase("a", optimizer=rate), config.phase("b"))
    checks.check_settings(from_config(c))
    c.dpo.optimizer.schedule = "linear"
    with pytest.raises(ValueError, match="'linear'; expected 'constant' or 'cosine'"):
        checks.check_settings(from_config(c))


def test_slots_and_parameters_divide_over_the_devices():
    c = settings()
    shape = model_config(from_config(c), 128)

    def check(shape, **mesh):
        trained = lm.Decoder(shape, make_mesh(**mesh))
        sampling = sharding.host_mesh(mesh.get("tensor", 1))
        checks.check_mesh(c.search.slots, trained, lm.Decoder(shape, sampling))

    check(shape)
    check(shape, data=4, fsdp=2)
    check(dataclasses.replace(shape, num_kv_heads=2), data=2, fsdp=2, tensor=2)
    with pytest.raises(ValueError, match="'kv_heads' of size 1 .* mesh.tensor=2"):
        check(shape, data=2, fsdp=2, tensor=2)
    c.search.slots = 12
    with pytest.raises(ValueError, match="slots=12; expected a multiple of the 8 data"):
        check(shape)
    # Four devices per problem leave two groups of devices.
    many = dataclasses.replace(shape, num_heads=4, num_kv_heads=4)
    check(many, data=2, tensor=4)


# Templates, tokenizer, model.


def test_templates_of_the_world_of_stepjax_and_of_the_settings():
    assert texts_of(settings()) == TEXTS
    own = texts_of(settings(data__world=""))
    assert (own.solve, own.judge) == (prompts.SOLVE, prompts.JUDGE)
    c = settings(prompts__solve="Q: {problem}\n", prompts__step="Part {n}) ")
    mixed = texts_of(c)
    assert (mixed.solve, mixed.judge) == ("Q: {problem}\n", TEXTS.judge)
    assert prompts.marker(mixed, 3) == "Part 3) "
    c.prompts.verdict = "no side"
    with pytest.raises(ValueError, match="{side}"):
        texts_of(c)


def test_a_step_marker_that_the_template_does_not_produce(tmp_path):
    c = settings(prompts__step="Part {n}: ")
    with pytest.raises(ValueError) as error:
        data.make_data(from_config(c), texts_of(c), tmp_path / "data")
    for words in ("IFT row 'arith-ift-0'", "'Step 1: ", "the marker 'Part 1: '"):
        assert words in str(error.value)
    assert not (tmp_path / "data").exists()


def test_tokenizers(codec, tmp_path):
    made = data.make_tokenizer(typed(), tmp_path / "world")
    assert made.token_bytes == codec.tokenizer.token_bytes
    c = settings(data__world="", tokenizer=str(codec.tokenizer.directory))
    copied = data.make_tokenizer(from_config(c), tmp_path / "copied")
    assert copied.directory == tmp_path / "copied"
    assert copied.encode_line("Step 1: 8*7+4=0") == codec.tokenizer.encode_line(
        "Step 1: 8*7+4=0"
    )
    c = settings(
        data__world="", tokenizer="", model__init=f"hf:{codec.tokenizer.directory}"
    )
    assert data.make_tokenizer(from_config(c), tmp_path / "hf").vocab_size == 131
    with pytest.raises(
        ValueError, match="config.tokenizer is empty; expected a folder"
    ):
        data.make_tokenizer(typed(data__world=""), tmp_path / "none")
    with pytest.raises(ValueError, match="nowhere: no tokenizer here; expected"):
        data.make_tokenizer(typed(tokenizer="nowhere"), tmp_path / "none")
    with pytest.raises(ValueError, match="nowhere: no tokenizer here; expected"):
        data.make_tokenizer(typed(model__init="hf:nowhere"), tmp_path / "none")


def test_vocabulary_of_the_model(tmp_path):
    sizes = [model_config(typed(), size).vocab_size for size in (121, 128, 129)]
    assert sizes == [128, 128, 136]
    made = model_config(typed(model__vocab_size=200), 128)
    assert (made.vocab_size, made.hidden_size, made.init_std) == (200, 16, 0.1)
    words = "the tokenizer has 201 ids and the model's vocabulary 200; expected at most"
    with pytest.raises(ValueError, match=words) as error:
        model_config(typed(model__vocab_size=200), 201)
    assert "raise model.vocab_size" in str(error.value)
    values = hf_config.config_to_hf(
        made, stop_ids=(1,), bos_id=None, dtype="float32", beside=None
    )
    (tmp_path / "config.json").write_text(json.dumps(values))
    c = settings(model__init=f"hf:{tmp_path}", model__hidden_size=99)
    assert model_config(from_config(c), 200).hidden_size == 16  # its own shape
    with pytest.raises(ValueError, match="201 ids and the model's vocabulary 200"):
        model_config(from_config(c), 201)
    with pytest.raises(ValueError, match="'zeros'; expected 'random' or 'hf:DIR'"):
        model_config(typed(model__init="zeros"), 128)


# Budgets.


def test_budgets_to_the_token(codec):
    files = {
        "test": [Problem("short", "5*3+1", "6"), Problem("long", "8*7+4*4+2", "2")]
    }
    solve = len(codec.solve_prompt("8*7+4*4+2"))
    judged = len(codec.judge_context("8*7+4*4+2", ()))
    assert solve > len(codec.solve_prompt("5*3+1")) and judged > 1
    c = settings(search__max_step_tokens=5, judge__max_tokens=1)
    c.search.context_tokens, c.judge.context_tokens = solve + 5, judged
    checks.check_budgets(from_config(c), codec, files)
    c.search.context_tokens -= 1
    with pytest.raises(ValueError) as error:
        checks.check_budgets(from_config(c), codec, files)
    assert str(error.value) == (
        f"test row 'long': its prompt and one step of search.max_step_tokens=5 need "
        f"{solve + 5} tokens; expected at most search.context_tokens={solve + 4}. "
        "Raise it or drop the problem."
    )
    c.search.context_tokens, c.judge.context_tokens = 99, judged - 1
    words = f"'long': the judge's prompt has {judged} tokens; expected at most"
    with pytest.raises(ValueError, match=words):
        checks.check_budgets(from_config(c), codec, files)
    c.judge.context_tokens, c.judge.max_tokens = 99, 0
    with pytest.raises(
        ValueError, match="judge.max_tokens=0; expected at least the 1 "
    ):
        checks.check_budgets(from_config(c), codec, files)
    c.judge.mode = "logprob"  # writes nothing
    checks.check_budgets(from_config(c), codec, files)
