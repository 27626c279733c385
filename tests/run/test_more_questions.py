"""More iterations of a run: new questions, and not a byte of anything else."""

import pytest
import tiny_word_config
from runs import contents
from tiny_config import changed
from tiny_eft_config import changed as changed_eft

from stepjax import records
from stepjax.lm import files
from stepjax.records import Question
from stepjax.run import more_questions, prepare, world_rows
from stepjax.run.rundir import RunDirectory
from stepjax.settings import from_config, templates


def prepared(settings, folder):
    """Prepares the data of a run, adds what is missing; returns the folder's files."""
    typed = from_config(settings)
    texts = templates(typed.texts, world_rows.templates(typed.data.world))
    stage = prepare.prepare(typed, texts, RunDirectory(settings, folder))
    more_questions.add(typed, texts, stage)
    return contents(folder / "data")


def problems(folder):
    return {
        path.stem: {row["problem"] for _, row in records.read_objects(path)}
        for path in folder.glob("data/*.jsonl")
    }


@pytest.mark.parametrize(
    ("world", "prefix"), [("arithmetic", "arith"), ("backwards", "backwards")]
)
def test_an_extended_run_has_the_data_of_a_run_that_was_longer_from_the_start(
    tmp_path, world, prefix
):
    def run(iterations, folder):
        c = changed(iterations=iterations, data__world=world)
        return prepared(c, tmp_path / folder)

    before, after = run(2, "run"), run(4, "run")
    new = {"questions_3.jsonl", "questions_4.jsonl"}
    assert after.keys() - before.keys() == new
    for name in before.keys() - {"manifest.json"}:
        assert after[name] == before[name], name
    whole = run(4, "whole")
    assert {n: after[n] for n in new} == {n: whole[n] for n in new}
    asked = records.read_jsonl(tmp_path / "run/data/questions_4.jsonl", Question)
    assert len(asked) == 24 and asked[5].id == f"{prefix}-q4-5"
    assert run(3, "run") == after


def _word_problems(folder):
    folder.mkdir()
    c = tiny_word_config.make(folder)
    c.data.questions = (2,)
    return c


@pytest.mark.parametrize("world", ["arithmetic", "word_problems"])
def test_lost_data_of_an_extended_run_come_back(tmp_path, world):
    words = world == "word_problems"
    c = _word_problems(tmp_path / "own") if words else changed_eft()
    for iterations in (1, 2, 4):
        c.iterations = iterations
        made = prepared(c, tmp_path / "run")
    assert "questions_4.jsonl" in made and words == ("equations_3.jsonl" in made)
    c.iterations = 3  # fewer than there are questions for
    for name in made.keys() - {"manifest.json"}:
        (tmp_path / "run/data" / name).unlink()
        assert prepared(c, tmp_path / "run") == made, name


@pytest.mark.parametrize("world", ["arithmetic", "word_problems"])
def test_a_lost_manifest_of_an_extended_run_comes_back(tmp_path, world):
    c = _word_problems(tmp_path / "own") if world != "arithmetic" else changed_eft()
    folder = tmp_path / "run"
    for iterations in (1, 2, 4):
        c.iterations = iterations
        made = prepared(c, folder)
    files.write_json(folder / "M1/manifest.json", {"stage": "sft"})  # it has the data
    before = files.read_json(folder / "data/manifest.json")
    (folder / "data/manifest.json").unlink()
    assert prepared(c, folder).keys() == made.keys()
    after = files.read_json(folder / "data/manifest.json")
    # In the world of arithmetic, later questions are the same whenever they are dealt.
    assert after["dealt"] == [1, 4] if world == "arithmetic" else [1, 2, 4]
    for name in ("files", "counts", "initial_weights"):
        assert after[name] == before[name]


def test_new_questions_of_a_run_that_makes_its_eft_rows_are_in_no_split(tmp_path):
    before = prepared(changed_eft(), tmp_path / "run")
    first = problems(tmp_path / "run")
    number = len([name for name in first if name.startswith("questions_")])
    after = prepared(changed_eft(iterations=number + 1), tmp_path / "run")
    for name in before.keys() - {"manifest.json"}:
        assert after[name] == before[name], name
    new = problems(tmp_path / "run")[f"questions_{number + 1}"]
    assert len(new) > 1 and "tree_questions" in first
    for name, seen in first.items():
        assert not new & seen, name


def test_files_with_too_few_questions_left(tmp_path, tokenizer_folder):
    rows = [{"id": f"q{i}", "problem": f"{i}*9+1*4+2"} for i in range(7)]
    steps = ["Step 1: 8*7+4=0", "Step 2: 0*4+2=2; \\boxed{2}"]
    solved = {"id": "i", "problem": "8*7+4*4+2", "steps": steps, "answer": "2"}
    judged = {"id": "e", "problem": "8*7+4*4+2", "steps": [], "verdict": "A"}
    judged |= {"a": "Step 1: 8*7+4=0", "b": "Step 1: 8*7+4=1"}
    for name, content in {
        "questions": rows,
        "ift": [solved],
        "eft": [judged],
        "test": [{"id": "t", "problem": "3*3+3*3+3", "answer": "9"}],
    }.items():
        records.write_jsonl(tmp_path / f"{name}.jsonl", content)
    c = changed(data__world="", iterations=1, data__questions=(3,))
    c.data.heldout_count = c.data.ift_count = c.data.eft_count = 0
    c.tokenizer = str(tokenizer_folder)
    c.data.question_file = str(tmp_path / "questions.jsonl")
    for name in ("ift", "eft", "test"):
        c.data[name] = str(tmp_path / f"{name}.jsonl")
    prepared(c, tmp_path / "run")
    c.iterations = 2
    prepared(c, tmp_path / "run")
    asked = records.read_jsonl(tmp_path / "run/data/questions_2.jsonl", Question)
    assert [row.id for row in asked] == ["q3", "q4", "q5"]
    c.iterations = 3
    words = "data.question_file has 1 questions that are in no other split; expected"
    with pytest.raises(ValueError, match=f"{words} at least 3 for the questions of"):
        prepared(c, tmp_path / "run")
    assert not (tmp_path / "run/data/questions_3.jsonl").exists()
