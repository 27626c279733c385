"""Stages of a run directory: begun, committed, found done, refused, tidied up."""

import pytest
from tiny_config import get_config

from stepjax.lm import files
from stepjax.run.rundir import RunDirectory


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(get_config(), tmp_path / "run")


def stage(directory, inputs, scratch="parts*"):
    folder = directory.path / "M1"
    return directory.stage("work", folder / "work.json", inputs, scratch)


def leave_scratch(directory):
    """A folder and a file that only an unfinished stage needs."""
    folder = directory.path / "M1"
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    (folder / "parts" / "1.json").write_text("{}")
    (folder / "parts.jsonl").write_text("")


def names(directory):
    return sorted(path.name for path in (directory.path / "M1").iterdir())


def test_a_stage_is_done_once_it_is_committed_and_its_scratch_goes(directory):
    begun = stage(directory, {"x": "1"})
    assert begun.done is None
    leave_scratch(directory)
    (directory.path / "M1" / "result.txt").write_text("42")
    begun.commit(["result.txt"], counts={"rows": 7})
    assert begun.done["counts"] == {"rows": 7}
    assert names(directory) == ["result.txt", "work.json"]
    manifest = files.read_json(directory.path / "M1" / "work.json")
    assert (manifest["stage"], manifest["inputs"]) == ("work", {"x": "1"})
    assert list(manifest["files"]) == ["result.txt"] and manifest["seconds"] >= 0
    assert stage(directory, {"x": "1"}).done == manifest == begun.done


def test_scratch_of_a_run_killed_after_its_commit_goes_when_the_stage_is_found_done(
    directory,
):
    stage(directory, {}).commit()
    leave_scratch(directory)
    assert stage(directory, {}, scratch=None).done
    assert names(directory) == ["parts", "parts.jsonl", "work.json"]
    assert stage(directory, {}).done
    assert names(directory) == ["work.json"]


def test_scratch_of_an_unfinished_stage_stays(directory):
    leave_scratch(directory)
    assert stage(directory, {}).done is None
    assert names(directory) == ["parts", "parts.jsonl"]


def test_other_inputs_and_changed_files_are_refused(directory):
    result = directory.path / "M1" / "result.txt"
    result.parent.mkdir()
    result.write_text("42")
    stage(directory, {"x": "1"}).commit(["result.txt"])
    with pytest.raises(ValueError, match="work.json: x is not what this stage was"):
        stage(directory, {"x": "2"})
    result.write_text("43")
    with pytest.raises(ValueError, match="result.txt has changed since it was written"):
        stage(directory, {"x": "1"})
    result.unlink()
    with pytest.raises(ValueError, match="result.txt is gone; expected SHA-256"):
        stage(directory, {"x": "1"})


def test_a_manifest_that_was_changed_is_named_with_what_mends_it(directory):
    stage(directory, {"x": "1"}).commit(counts={"rows": 7})
    path = directory.path / "M1" / "work.json"
    text = path.read_text()
    for damaged, reason in (
        (text.replace('"rows": 7', '"rows": 9'), "has changed since it was written"),
        (text[:300], "broken JSON"),
        ("{}", "there are no inputs and files in it"),
        ("[]", "there are no inputs and files in it"),
        ("null", "there are no inputs and files in it"),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=reason) as error:
            stage(directory, {"x": "1"})
        said = str(error.value)
        assert said.startswith(str(path)) and "delete " in said and "command" in said
    # Those of earlier versions have no digest.
    path.write_text(text)
    files.write_json(path, files.read_json(path))
    assert stage(directory, {"x": "1"}).done["counts"] == {"rows": 7}


@pytest.mark.parametrize("change", [("0.25", "0.75"), ("{", "["), ("metrics", "x")])
def test_a_damaged_measurement_is_measured_again(directory, change):
    target = directory.path / "eval" / "M1_test_greedy.json"

    def measurement():
        return directory.measurement("greedy", target, {"benchmark": "1"})

    measurement().commit(metrics={"accuracy": 0.25})
    assert measurement().done["metrics"] == {"accuracy": 0.25}
    target.write_text(target.read_text().replace(*change))
    assert measurement().done is None and not target.exists()
