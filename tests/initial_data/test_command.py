"""The command `stepjax init-data`: what it writes, counts and refuses."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from runs import CONFIG, command

from stepjax import records
from stepjax.initial_data import command as init_data
from stepjax.initial_data import eft, ift
from stepjax.initial_data.formats import sources
from stepjax.pairs import Pair
from stepjax.prompts import Templates
from stepjax.records import Comparison, Preference, Solution, StepLabels
from stepjax.run import data

TEMPLATES = Templates()
GSM8K = [{"question": f"{n}+1?", "answer": f"Add.\n#### {n + 1}"} for n in range(5)]
PRM800K = {
    "question": {"problem": "p"},
    "label": {
        "steps": [
            {
                "completions": [
                    {"text": "a", "rating": 1},
                    {"text": "b", "rating": -1},
                    {"text": "c", "rating": 0},
                ],
                "chosen_completion": 0,
            }
        ]
    },
}


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Runs init-data in an empty folder; returns (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        status = command("init-data", *arguments)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_usage(init):
    for arguments, status in (([], 2), (["--help"], 0), (["convert", "--help"], 0)):
        code, out, err = init(*arguments)
        assert code == status
        text = out if status == 0 else err
        assert text.startswith("usage: stepjax init-data ACTION")
        for name in (*init_data.ACTIONS, *sources.FORMATS, *sources.TYPES, "trl"):
            assert name in text
    code, out, err = init("make")
    assert code == 2 and "unknown action 'make'" in err and not out


def test_it_starts_without_jax():
    script = (
        "import sys; from stepjax import main; main.main(['stepjax', 'init-data']); "
        "print([name for name in ('jax', 'transformers', 'pyarrow') if name in "
        "sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.stdout == "[]\n" and "usage: stepjax init-data" in done.stderr


def test_convert(init):
    records.write_jsonl("x.jsonl", GSM8K)
    arguments = ["--input=x.jsonl", "--format=gsm8k", "--output=y.jsonl"]
    status, out, err = init("convert", *arguments, "--to=solution")
    assert status == 0 and "Traceback" not in err
    assert out == ("read 5 rows: kept 5, rejected 0\nwrote 5 rows to y.jsonl\n")
    made = records.read_jsonl("y.jsonl", Solution)
    assert made == sources.read("x.jsonl", "gsm8k", "solution", TEMPLATES)
    # An output is not replaced without being asked.
    status, out, err = init("convert", *arguments, "--to=question")
    assert (status, out) == (2, "") and "y.jsonl exists; expected a new file" in err
    assert records.read_jsonl("y.jsonl", Solution) == made
    assert init("convert", *arguments, "--to=question", "--force")[0] == 0
    assert records.read_jsonl("y.jsonl", records.Question)[4].problem == "4+1?"


def test_rejects_and_counts_add_up(init, tmp_path):
    lines = [json.dumps(row) for row in GSM8K]
    lines[1:1] = ["{", '{"question": "a", "answer": 5}', "{"]
    (tmp_path / "x.jsonl").write_text("".join(f"{line}\n" for line in lines))
    arguments = ["--input=x.jsonl", "--format=gsm8k", "--to=worked", "--output=y.jsonl"]
    status, out, err = init("convert", *arguments)
    assert (status, out) == (1, "") and "stepjax: x.jsonl:2: broken JSON" in err
    assert "Traceback" not in err and not (tmp_path / "y.jsonl").exists()
    status, out, _ = init("convert", *arguments, "--rejects=bad.jsonl")
    assert status == 0 and out == (
        "read 8 rows: kept 5, rejected 3\n"
        "  2 rejected: broken JSON\n"
        "  1 rejected: field 'answer'\n"
        "the rejected rows and their reasons are in bad.jsonl\n"
        "wrote 5 rows to y.jsonl\n"
    )
    rows = [row for _, row in records.read_objects("bad.jsonl")]
    assert [(row["file"], row["line"], row["row"]) for row in rows] == [
        ("x.jsonl", 2, "{"),
        ("x.jsonl", 3, '{"question": "a", "answer": 5}'),
        ("x.jsonl", 4, "{"),
    ]
    # Without a good row there is no output, but the list of reasons.
    (tmp_path / "x.jsonl").write_text("{\n{\n")
    status, out, err = init("convert", *arguments, "--rejects=bad.jsonl", "--force")
    assert (status, out) == (1, "") and "all of the 2 rows are bad" in err
    assert len(list(records.read_objects("bad.jsonl"))) == 2


def test_rows_of_other_programs(init):
    own = Preference("a", "p", ("Step 1: a",), "Step 2: b", "Step 2: c")
    records.write_jsonl("x.jsonl", [own])
    for to, form in (("trl", "trl"), ("step-dpo", "step_dpo")):
        arguments = ["--input=x.jsonl", "--format=jsonl", f"--to={to}"]
        assert init("convert", *arguments, f"--output={to}.jsonl")[0] == 0
        (made,) = sources.read(f"{to}.jsonl", form, "preference", TEMPLATES)
        assert (made.problem, made.steps) == (own.problem, own.steps)
        assert (made.chosen, made.rejected) == (own.chosen, own.rejected)


@pytest.mark.parametrize(("neutral", "labels"), [("+", [1, 0, 1]), ("", [1, 0])])
def test_neutral_ratings(init, neutral, labels):
    records.write_jsonl("x.jsonl", [PRM800K])
    arguments = ["--input=x.jsonl", "--format=prm800k", "--to=labels"]
    status, out, _ = init(
        "convert", *arguments, "--output=y.jsonl", f"--neutral={neutral}"
    )
    assert status == 0 and f"wrote {len(labels)} rows" in out
    made = records.read_jsonl("y.jsonl", StepLabels)
    assert [row.labels[-1] for row in made] == labels


@pytest.mark.parametrize(
    ("explanation", "text"),
    [("template", "Candidate A is right, and candidate B is wrong. "), ("none", "")],
)
def test_judgments_of_ratings(init, explanation, text):
    records.write_jsonl("x.jsonl", [PRM800K])
    arguments = ["--input=x.jsonl", "--format=prm800k", "--output=y.jsonl"]
    status, out, _ = init("eft", *arguments, f"--explanation={explanation}")
    assert status == 0 and "wrote 2 rows to y.jsonl" in out
    first, second = records.read_jsonl("y.jsonl", Comparison)
    steps = "Step 1: a", "Step 1: b"
    name = "prm800k-x-0-1-0-1"
    assert first == Comparison(f"{name}-ab", "p", (), *steps, "A", text)
    assert (second.a, second.b, second.verdict) == (*steps[::-1], "B")


def test_solutions_are_cut_by_rules(init, tmp_path):
    first = "Step 1: First we add the two numbers, which gives us three."
    solution = first[8:] + "\n\nThen we stop, since the answer is $\\boxed{3}$."
    proof = {"problem": "Prove.", "solution": "Clear."}
    records.write_jsonl("x.jsonl", [{"problem": "1+2?", "solution": solution}, proof])
    arguments = ["--input=x.jsonl", "--format=numina", "--output=y.jsonl"]
    status, out, _ = init("ift", *arguments)
    assert status == 0 and "1 rejected: no boxed answer" in out
    (made,) = records.read_jsonl("y.jsonl", Solution)
    assert (made.id, made.problem, made.answer) == ("numina-x-0", "1+2?", "3")
    assert len(made.steps) == 2 and made.steps[0] == first
    # A run reads the same file in the same way.
    assert data.READERS["ift"]["numina"]("x.jsonl", TEMPLATES) == [made]
    records.write_jsonl("x.jsonl", [proof])
    with pytest.raises(ValueError, match="none of the 1 solutions can be cut"):
        data.READERS["ift"]["numina"]("x.jsonl", TEMPLATES)
    status, out, err = init("ift", *arguments, "--force")
    assert status == 1 and "nothing is left to write to y.jsonl" in err


def test_problems_of_evaluations_are_left_out(init):
    records.write_jsonl("x.jsonl", GSM8K)
    records.write_jsonl("gsm8k.jsonl", [GSM8K[1], {"question": "9+9?"}])
    records.write_jsonl("math.jsonl", [{"problem": "3+1?", "answer": "4"}])
    arguments = ["--input=x.jsonl", "--format=gsm8k", "--output=y.jsonl"]
    status, out, err = init("ift", *arguments, "--against=gsm8k.jsonl,math.jsonl")
    assert status == 0 and "2 rows share text with them and are left out" in out
    assert "gsm8k-x-1 and gsm8k.jsonl gsm8k-0 (exact)" in out
    made = records.read_jsonl("y.jsonl", Solution)
    assert [row.problem for row in made] == ["0+1?", "2+1?", "4+1?"]
    # PRM800K has problems of the MATH test set.
    records.write_jsonl("x.jsonl", [PRM800K])
    arguments = ["--input=x.jsonl", "--format=prm800k", "--output=z.jsonl"]
    _, _, err = init("eft", *arguments, "--against=math.jsonl")
    assert "stepjax: PRM800K holds solutions" in err and "'math.jsonl'" in err


def test_data_sets_with_steps_of_their_own_keep_them(init):
    records.write_jsonl("x.jsonl", GSM8K)
    arguments = ["--input=x.jsonl", "--format=gsm8k", "--output=y.jsonl"]
    assert init("ift", *arguments)[0] == 0
    made = records.read_jsonl("y.jsonl", Solution)
    assert made == sources.read("x.jsonl", "gsm8k", "solution", TEMPLATES)


def replay(path, answers):
    """A teacher's answers in a file, and the settings that name it."""
    records.write_jsonl(path, answers)
    return [f"--config={CONFIG}", "--config.teacher.backend=replay"] + [
        f"--config.teacher.file={path}",
        "--config.data.world=",
    ]


def test_a_teacher_cuts_solutions(init):
    solution = r"First add. It is $\boxed{3}$."
    row = {"problem": "1+2?", "solution": solution, "id": "own"}
    records.write_jsonl("x.jsonl", [row, row | {"id": "other", "problem": "2+1?"}])
    whole = sources.read("x.jsonl", "math", "worked", TEMPLATES)
    texts = ["Step 1: First add.\nStep 2: It is $\\boxed{3}$.", "Step 1: Add more."]
    answers = [
        {"prompt": ift.teacher_prompt(TEMPLATES, row), "text": text}
        for row, text in zip(whole, texts, strict=True)
    ]
    arguments = ["--input=x.jsonl", "--format=math", "--output=y.jsonl"]
    teacher = replay("answers.jsonl", answers)
    status, out, err = init("ift", *arguments, "--cut=teacher", *teacher)
    assert status == 0, err
    (made,) = records.read_jsonl("y.jsonl", Solution)
    assert made.id == "own" and len(made.steps) == 2
    assert "1 rejected: the boxed answer is gone" in out


def test_a_teacher_explains_ratings(init):
    records.write_jsonl("x.jsonl", [PRM800K])
    pairs = sources.read("x.jsonl", "prm800k", "preference", TEMPLATES)
    texts = ["A is so. [[A]]", "B is so. [[B]]"]
    answers = [
        {"prompt": prompt, "text": text}
        for prompt, text in zip(eft.requests(pairs, TEMPLATES), texts, strict=True)
    ]
    arguments = ["--input=x.jsonl", "--format=prm800k", "--output=y.jsonl"]
    teacher = replay("answers.jsonl", answers)
    status, out, err = init("eft", *arguments, "--explanation=teacher", *teacher)
    assert status == 0, err
    made = records.read_jsonl("y.jsonl", Comparison)
    assert [row.verdict for row in made] == ["A", "B"]
    assert [row.explanation for row in made] == ["A is so. ", "B is so. "]
    assert "teacher disagrees with the people" in out
    teacher[1] = "--config.teacher.backend=local"
    status, _, err = init(
        "eft", *arguments, "--explanation=teacher", *teacher, "--force"
    )
    assert status == 1 and "teacher.backend='local'; expected 'http' or 'replay'" in err


def test_pairs_of_a_run(init, finished):
    path = finished / "M1" / "pairs.jsonl"
    pairs = records.read_jsonl(path, Pair)
    arguments = ["convert", f"--input={path}", "--format=pairs"]
    status, out, _ = init(*arguments, "--to=preference", "--output=own.jsonl")
    assert status == 0 and f"wrote {len(pairs)} rows" in out and len(pairs) > 3
    made = records.read_jsonl("own.jsonl", Preference)
    for row, pair in zip(made, pairs, strict=True):
        assert (row.id, row.problem) == (pair.id, pair.problem)
        assert (row.chosen, row.rejected) == (pair.chosen, pair.rejected)
        assert len(row.steps) == pair.step - 1
    assert max(len(row.steps) for row in made) > 0
    # Written for TRL, in the words of the run, and read back.
    assert init(*arguments, "--to=trl", "--output=trl.jsonl")[0] == 0
    again = ["--input=trl.jsonl", "--format=trl", "--to=preference"]
    again += ["--output=own2.jsonl", f"--config={CONFIG}"]
    assert init("convert", *again)[0] == 0
    back = records.read_jsonl("own2.jsonl", Preference)

    def texts(row):  # the reader leaves out blanks around what follows the marker
        steps = [step.partition(": ") for step in row.steps]
        pair = [step.partition(": ") for step in (row.chosen, row.rejected)]
        return [row.problem, *((name, body.strip()) for name, _, body in steps + pair)]

    assert list(map(texts, made)) == list(map(texts, back))


def test_pairs_that_have_changed_are_refused(init, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "M1" / "pairs.jsonl"
    rows = [row for _, row in records.read_objects(path)]
    rows[0] |= {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    records.write_jsonl(path, rows)
    arguments = [f"--input={path}", "--format=pairs", "--output=y.jsonl"]
    status, _, err = init("convert", *arguments, "--to=trl")
    assert status == 1 and f"{path} has changed since it was written; expected" in err


def test_pairs_of_no_run(init, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    arguments = ["--input=pairs.jsonl", "--format=pairs", "--output=y.jsonl"]
    status, _, err = init("convert", *arguments, "--to=trl")
    assert status == 1 and "config.json: cannot be read (No such file" in err
    status, _, err = init("convert", *arguments, "--to=labels")
    assert status == 1 and "format 'pairs' gives 'preference'" in err


NO_TO = ["--input=x.jsonl", "--format=gsm8k", "--output=y.jsonl"]
GOOD = [*NO_TO, "--to=worked"]


def good_but(option):
    """Returns GOOD with another value of one option."""
    name = option.partition("=")[0]
    return [option if word.startswith(f"{name}=") else word for word in GOOD]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert"], "needs --input --format --output --to; expected all"),
        (["convert", *NO_TO[:2], "--to=worked"], "init-data convert needs --output"),
        (["ift"], "needs --input --format --output; expected"),
        (["eft"], "--workdir is missing; expected the run directory (or --input"),
        (["prm"], "--workdir is missing; expected the run directory."),
        (["convert", *good_but("--format=csv")], "--format=csv: "),
        (["convert", *good_but("--to=csv")], "--to=csv: "),
        (["convert", *GOOD, "extra"], "unexpected arguments ['extra']"),
        (["convert", *good_but("--output=no/y.jsonl")], "no is no folder; expected"),
        (["convert", *good_but("--output=x.jsonl")], "x.jsonl exists"),
        (["convert", *good_but("--output=x.jsonl"), "--force"], "is read and"),
        (["convert", *GOOD, "--to=labels"], "--to=worked and --to=labels are both"),
        (["convert", *GOOD, "--rejects=y.jsonl"], "name the same file"),
        (["convert", *GOOD, "--rejects=x.jsonl"], "x.jsonl exists"),
        (["ift", *NO_TO, "--cut=teacher"], "a teacher needs --config"),
        (["eft", *NO_TO, "--explanation=teacher"], "a teacher needs --config"),
    ],
)
def test_wrong_arguments(init, arguments, words):
    records.write_jsonl("x.jsonl", GSM8K)
    status, out, err = init(*arguments)
    assert (status, out) == (2, "") and words in err and "Traceback" not in err
    assert [row for _, row in records.read_objects("x.jsonl")] == GSM8K


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", *good_but("--to=labels")], "format 'gsm8k' gives"),
        (["convert", *good_but("--input=no.jsonl")], "no.jsonl: cannot be read (No"),
        (["eft", *NO_TO], "format 'gsm8k' gives"),
    ],
)
def test_input_that_cannot_be_used(init, arguments, words):
    records.write_jsonl("x.jsonl", GSM8K)
    status, out, err = init(*arguments)
    assert (status, out) == (1, "") and words in err and "Traceback" not in err


def test_a_config_of_another_program_is_no_run(init, tmp_path):
    (tmp_path / "run" / "M1").mkdir(parents=True)
    (tmp_path / "run" / "M1" / "pairs.jsonl").write_text("{}\n")
    arguments = ["--input=run/M1/pairs.jsonl", "--format=pairs", "--output=y.jsonl"]
    for text, words in (
        ('{"a":', "config.json: broken JSON"),
        ('{"model_type": "qwen2"}', "is none of a run of stepjax"),
    ):
        (tmp_path / "run" / "config.json").write_text(text)
        status, _, err = init("convert", *arguments, "--to=trl")
        assert status == 1 and words in err and "Traceback" not in err


def test_outputs_that_cannot_be_written(init, tmp_path):
    (tmp_path / "folder").mkdir()
    records.write_jsonl("folder/x.jsonl", GSM8K)
    arguments = ["--format=gsm8k", "--to=question", "--force"]
    for source, output, words in (
        ("folder", "folder/y.jsonl", "all of whose files are read"),
        ("folder/x.jsonl", "folder", "folder is no file"),
        ("folder/x.jsonl", ".", ". is no file"),
        ("folder/x.jsonl", "/dev/null", "/dev/null is no file"),
        ("folder/x.jsonl", "folder/../folder/x.jsonl", "is read and would be written"),
    ):
        status, _, err = init(
            "convert", f"--input={source}", f"--output={output}", *arguments
        )
        assert status == 2 and words in err
    evaluations = ["--input=folder", "--output=e.jsonl", "--against=e.jsonl"]
    status, _, err = init("convert", *evaluations, *arguments)
    assert status == 2 and "is read and would be written" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "x.jsonl"]


def test_a_full_disk_leaves_no_part(init, tmp_path, monkeypatch):
    records.write_jsonl("x.jsonl", GSM8K)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    arguments = ["--input=x.jsonl", "--format=gsm8k", "--output=y.jsonl"]
    status, _, err = init("convert", *arguments, "--to=question")
    assert status == 1 and "y.jsonl: cannot be written (No space left" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_the_home_folder_and_a_comma_at_the_end(init, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    records.write_jsonl("x.jsonl", GSM8K)
    records.write_jsonl("e.jsonl", GSM8K[:2])
    arguments = ["--input=~/x.jsonl", "--format=gsm8k", "--output=~/y.jsonl"]
    status, out, _ = init("ift", *arguments, "--against=~/e.jsonl,")
    assert status == 0 and "2 rows share text with them" in out
    assert len(records.read_jsonl("y.jsonl", Solution)) == 3


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_nobody_reads_what_is_printed(tmp_path, encoding):
    """As behind `| head -1`, and on a terminal that cannot show all letters."""
    row = {
        "question": "小明有三个苹果，他又买了五个苹果，一共有几个？",
        "answer": "#### 8",
    }
    records.write_jsonl(tmp_path / "x.jsonl", [row, *GSM8K])
    records.write_jsonl(tmp_path / "e.jsonl", [row])
    reader, writer = os.pipe()
    if encoding == "utf-8":
        os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "stepjax", "init-data", "ift", "--format=gsm8k"]
            + ["--input=x.jsonl", "--against=e.jsonl", "--output=o.jsonl"],
            cwd=tmp_path,
            stdout=pipe,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": os.getcwd()},
        )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"Broken pipe" not in done.stderr
    assert len(records.read_jsonl(tmp_path / "o.jsonl", Solution)) == 5
    if encoding == "ascii":
        with open(reader, "rb") as shown:
            assert b"\\u5c0f \\u660e" in shown.read()


def test_every_rejected_row_is_in_one_line_of_the_reasons(init):
    twice = [{"id": str(n % 30), "problem": "p", "answer": "1"} for n in range(60)]
    records.write_jsonl("x.jsonl", twice)
    arguments = ["--input=x.jsonl", "--format=benchmark", "--output=y.jsonl"]
    status, out, _ = init("convert", *arguments, "--to=problem", "--rejects=r.jsonl")
    assert status == 0 and "kept 30, rejected 30" in out
    assert "  30 rejected: an earlier row has the same id\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ift", "--to=worked"], "--to with init-data ift, which does not read it"),
        (["convert", "--to=worked", "--cut=teacher"], "--cut with init-data convert"),
        (["eft", "--cut=rules"], "--cut with init-data eft"),
        (
            ["convert", "--to=worked", "--neutral=-"],
            "--neutral is for --format=prm800k",
        ),
        (["prm", "--workdir=run"], "--input --format --output with init-data prm"),
        (["mcts", "--workdir=run"], "--input --format --output with init-data mcts"),
    ],
)
def test_a_flag_that_an_action_does_not_read_is_refused(
    init, tmp_path, arguments, words
):
    records.write_jsonl("x.jsonl", GSM8K)
    action, *own = arguments
    status, _, err = init(action, *NO_TO, f"--config={CONFIG}", *own)
    assert status == 2 and words in err
    assert not (tmp_path / "y.jsonl").exists() and not (tmp_path / "run").exists()


def test_solutions_of_one_problem_become_one_question(init):
    records.write_jsonl("x.jsonl", [PRM800K] * 3)
    arguments = ["--input=x.jsonl", "--format=prm800k", "--output=y.jsonl"]
    status, out, _ = init("convert", *arguments, "--to=question")
    assert status == 0 and "read 3 rows: kept 3" in out and "of 1 problems" in out
    assert len(records.read_jsonl("y.jsonl", records.Question)) == 1
