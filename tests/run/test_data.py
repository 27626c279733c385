"""The first stage: splits, templates, tokenizer."""

import json
import random

import pytest
from golden_models import copy_golden
from tiny_config import changed

from stepjax import prompts, records
from stepjax.records import Comparison, Problem, Question, Solution
from stepjax.run import data, world_rows
from stepjax.settings import from_config, templates
from stepjax.worlds import arithmetic, arithmetic_data

TEXTS = arithmetic.templates()


def typed(**changes):
    return from_config(changed(**changes))


def texts_of(c):
    """The templates of a run with these settings."""
    return templates(from_config(c).texts, world_rows.templates(c.data.world))


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


def test_a_number_of_questions_for_every_iteration(tmp_path):
    counts = data.make_data(typed(data__questions=(3,)), TEXTS, tmp_path / "x")
    assert (counts["questions_1"], counts["questions_2"]) == (3, 3)
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
    c = changed(data__world="", data__questions=(4, 5), data__heldout_count=1)
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


def test_all_questions_of_a_file_are_dealt_out(files, tmp_path):
    c, rows = files
    c.data.questions = ()
    counts = data.make_data(from_config(c), TEXTS, tmp_path / "data")
    assert (counts["questions_1"], counts["questions_2"]) == (4, 4)  # 9 are left
    asked = [
        row
        for n in (1, 2)
        for row in records.read_jsonl(tmp_path / f"data/questions_{n}.jsonl", Question)
    ]
    assert asked == rows["question_file"][6:14]
    c.iterations = 10
    with pytest.raises(ValueError, match=r"has 9 questions .* at least 10"):
        data.make_data(from_config(c), TEXTS, tmp_path / "other")


def test_too_few_questions(files, tmp_path):
    c, _ = files
    c.data.questions = (5, 5)
    words = r"has 9 questions .* at least 10 for data.questions=\(5, 5\). Lower"
    with pytest.raises(ValueError, match=words):
        data.make_data(from_config(c), TEXTS, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_more_problems_cannot_be_held_out_than_there_are(files, tmp_path):
    c, _ = files
    for count in (3, 4):
        c.data.heldout_count = count
        counts = data.make_data(from_config(c), TEXTS, tmp_path / f"data_{count}")
        assert (counts["eft"], counts["heldout"]) == (8 - 2 * count, 2 * count)
    c.data.heldout_count = 5
    words = "eft.jsonl has 4 problems; expected at least data.heldout_count=5"
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
    c = changed(data__world="", data__questions=(2, 1), data__ift_count=3)
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


def test_prm800k_and_a_math_evaluation_give_a_warning(files, tmp_path, capsys):
    c, rows = files
    completions = [{"text": "a", "rating": 1}, {"text": "b", "rating": -1}]
    step = {"completions": completions, "chosen_completion": 0}
    row = {"question": {"problem": "Another?"}, "label": {"steps": [step]}}
    (tmp_path / "prm.jsonl").write_text(json.dumps(row) + "\n")
    c.data.eft, c.data.eft_format = str(tmp_path / "prm.jsonl"), "prm800k"
    c.data.heldout_count = c.data.eft_count = 0
    for name, count in (("other", 0), ("math500", 1)):
        c.data.test = str(tmp_path / f"{name}.jsonl")
        records.write_jsonl(c.data.test, rows["test"])
        data.make_data(from_config(c), TEXTS, tmp_path / name)
        said = capsys.readouterr().out
        assert said.count("solutions of about 4,500 of the 5,000 problems") == count


# Templates and tokenizer.


def test_templates_of_the_world_of_stepjax_and_of_the_settings():
    assert texts_of(changed()) == TEXTS
    own = texts_of(changed(data__world=""))
    assert (own.solve, own.judge) == (prompts.SOLVE, prompts.JUDGE)
    c = changed(prompts__solve="Q: {problem}\n", prompts__step="Part {n}) ")
    mixed = texts_of(c)
    assert (mixed.solve, mixed.judge) == ("Q: {problem}\n", TEXTS.judge)
    assert prompts.marker(mixed, 3) == "Part 3) "
    c.prompts.verdict = "no side"
    with pytest.raises(ValueError, match="{side}"):
        texts_of(c)


def test_a_step_marker_that_the_template_does_not_produce(tmp_path):
    c = changed(prompts__step="Part {n}: ")
    with pytest.raises(ValueError) as error:
        data.make_data(from_config(c), texts_of(c), tmp_path / "data")
    for words in ("IFT row 'arith-ift-0'", "'Step 1: ", "the marker 'Part 1: '"):
        assert words in str(error.value)
    assert not (tmp_path / "data").exists()


def test_tokenizers(codec, tmp_path):
    made = data.make_tokenizer(typed(), tmp_path / "world")
    assert made.token_bytes == codec.tokenizer.token_bytes
    c = changed(data__world="", tokenizer=str(codec.tokenizer.directory))
    copied = data.make_tokenizer(from_config(c), tmp_path / "copied")
    assert copied.directory == tmp_path / "copied"
    assert copied.encode_line("Step 1: 8*7+4=0") == codec.tokenizer.encode_line(
        "Step 1: 8*7+4=0"
    )
    folder = copy_golden("llama", tmp_path / "model")
    codec.tokenizer.save(folder)
    c = changed(data__world="", tokenizer="", model__init=f"hf:{folder}")
    assert data.make_tokenizer(from_config(c), tmp_path / "hf").vocab_size == 131
    kept = (tmp_path / "hf" / "config.json").read_bytes()
    assert kept == (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match="^tokenizer is empty; expected a folder"):
        data.make_tokenizer(typed(data__world=""), tmp_path / "none")
    with pytest.raises(ValueError, match="nowhere: no tokenizer here; expected"):
        data.make_tokenizer(typed(tokenizer="nowhere"), tmp_path / "none")
    with pytest.raises(ValueError, match="nowhere/config.json: No such file.*; exp"):
        data.make_tokenizer(typed(model__init="hf:nowhere"), tmp_path / "none")
    with pytest.raises(ValueError, match="nowhere: no such file; expected a GGUF"):
        data.make_tokenizer(typed(model__init="gguf:nowhere"), tmp_path / "none")
