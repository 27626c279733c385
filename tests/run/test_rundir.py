"""Stages of a run directory: begun, committed, found done, refused, tidied up."""

import pytest
from tiny_config import changed, get_config

from stepjax.lm import files
from stepjax.run import rundir
from stepjax.run import stage as stages
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


def test_other_inputs_are_refused(directory):
    stage(directory, {"x": "1"}).commit()
    with pytest.raises(ValueError, match="work.json: x is not what this stage was"):
        stage(directory, {"x": "2"})


def test_a_stage_whose_files_are_damaged_is_done_again(directory):
    result, said = directory.path / "M1" / "result.txt", []
    directory.say = said.append
    result.parent.mkdir()
    result.write_text("42")
    stage(directory, {"x": "1"}).commit(["result.txt"])
    result.write_text("43")
    assert stage(directory, {"x": "1"}).done is None
    again = "so the stage 'work' is done again"
    assert said == [f"{result} has changed since it was written, {again}"]
    result.unlink()
    begun = stage(directory, {"x": "1"})
    assert begun.done is None and said[1] == f"{result} is gone, {again}"
    result.write_text("44")
    begun.commit(["result.txt"])
    assert stage(directory, {"x": "1"}).done


def test_a_command_that_only_looks_says_which_one_mends(directory):
    result = directory.path / "M1" / "result.txt"
    result.parent.mkdir()
    result.write_text("42")
    stage(directory, {"x": "1"}).commit(["result.txt"])
    result.write_text("43")
    looks = RunDirectory(get_config(), directory.path, keep=True)
    with pytest.raises(ValueError) as error:
        stage(looks, {"x": "1"})
    assert str(error.value) == (
        f"{result} has changed since it was written; expected what the stage 'work' "
        f"has written. Put it back, or run `stepjax run --workdir={directory.path}`, "
        "which makes it again."
    )
    assert result.read_text() == "43"


def test_a_manifest_that_was_changed_is_named_and_its_stage_is_done_again(directory):
    stage(directory, {"x": "1"}).commit(counts={"rows": 7})
    path, said = directory.path / "M1" / "work.json", []
    directory.say = said.append
    text = path.read_text()
    for damaged, reason in (
        (text.replace('"rows": 7', '"rows": 9'), "has changed since it was written"),
        (text[:300], "broken JSON"),
        ("{}", "there are no inputs and files in it"),
        ("[]", "there are no inputs and files in it"),
        ("null", "there are no inputs and files in it"),
        ('{"inputs": {}, "files": {}, "arrays": 5}', "there are no arrays in it"),
    ):
        path.write_text(damaged)
        assert stage(directory, {"x": "1"}).done is None
        assert said[-1].startswith(str(path)) and reason in said[-1]
        assert said[-1].endswith("so the stage 'work' is done again")
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


def test_a_damaged_file_beside_a_measurement_is_measured_again(directory):
    target = directory.path / "eval" / "M1_test_search.json"
    searches = target.with_suffix(".jsonl")
    for damage in (searches.unlink, lambda: searches.write_text("{}")):
        stage = directory.measurement("search", target, {"benchmark": "1"})
        assert stage.done is None and not searches.exists()
        searches.parent.mkdir(exist_ok=True)
        searches.write_text("{}\n")
        stage.commit([searches.name], metrics={"accuracy": 0.25})
        assert directory.measurement("search", target, {"benchmark": "1"}).done
        damage()
    assert not directory.measurement("search", target, {"benchmark": "1"}).done


# Settings.


def test_settings_that_are_lost_are_written_again_if_they_are_the_same(directory):
    path = directory.path / "config.json"
    stage(directory, {}).commit()
    directory.stage("sft", directory.path / "M1/manifest.json", {}).commit()
    states = directory.path / "M2/train/step_1.json"
    kept = path.read_bytes()
    for damaged in (b"", b"[]", kept[:99], kept.replace(b'"seed": 0', b'"seed": 1')):
        path.write_bytes(damaged)
        states.parent.mkdir(parents=True)
        states.touch()
        with pytest.raises(ValueError, match="that M1 was made with; expected these"):
            RunDirectory(changed(iterations=3), directory.path)
        with pytest.raises(ValueError, match="`stepjax run` with the same settings"):
            RunDirectory(get_config(), directory.path, keep=True)
        assert path.read_bytes() == damaged and states.exists()
        (line,) = RunDirectory(get_config(), directory.path).news
        assert line.startswith(f"{path}: ") and "it is written again, as the" in line
        assert path.read_bytes() == kept and not states.exists()
    path.unlink()
    (line,) = RunDirectory(get_config(), directory.path).news
    assert line.startswith(f"{path} is gone; it is written again")
    assert path.read_bytes() == kept


def test_settings_without_any_finished_stage_are_not_made_up(directory):
    (directory.path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: broken JSON.*delete the folder"):
        RunDirectory(get_config(), directory.path)


# Models.


def model(directory, number, bits, inputs):
    """Commits a model whose arrays have these digests."""
    path = directory.path / f"M{number}" / "manifest.json"
    directory.stage("a model", path, inputs).commit(arrays={"w": bits}, counts={})


def searched(directory, number, text):
    """Commits a search with these pairs; returns the digest of the pairs."""
    folder = directory.path / f"M{number}"
    (folder / "pairs.jsonl").write_text(text)
    inputs = directory.model_digest(number)
    directory.stage("search", folder / "search.json", inputs).commit(["pairs.jsonl"])
    return {"pairs": rundir.file_digest(folder / "pairs.jsonl")}


@pytest.fixture
def run(directory):
    """M1, its search, M2 and its search."""
    model(directory, 1, "one", {})
    pairs = searched(directory, 1, "{}")
    model(directory, 2, "two", directory.model_digest(1) | pairs)
    searched(directory, 2, "{}")
    return directory


def test_a_model_that_comes_out_the_same_is_the_same_input(run):
    run.check()
    path = run.path / "M1" / "manifest.json"
    before = files.read_json(path)
    path.unlink()
    run.check()
    said = []
    run.say = said.append
    model(run, 1, "one", {})
    assert said == [
        f"{path} is gone, so the stage 'a model' is done again; what was made after it "
        "(M1 search, M2, M2 search) stays, if the result is the same"
    ]
    assert files.read_json(path)["seconds"] != before["seconds"]
    run.check()
    assert run.stage("search", path.with_name("search.json"), run.model_digest(1)).done


def test_what_was_made_from_a_model_that_has_changed_is_named(run):
    path = run.path / "M1" / "manifest.json"
    path.unlink()
    model(run, 1, "other", {})
    words = (
        f"{run.path}: M1 is not what M1 search was made from; expected the same M1, "
        "bit for bit. Put it back, or add --redo=M1 to delete M1 search, M2, M2 search "
        "and make them again."
    )
    for refused in (
        run.check,
        lambda: run.stage("search", path.with_name("search.json"), run.model_digest(1)),
        lambda: RunDirectory(get_config(), run.path, "M2"),
    ):
        with pytest.raises(ValueError) as error:
            refused()
        assert str(error.value) == words
    for allowed in ("M1", "sft", "prepare"):
        again = RunDirectory(get_config(), run.path, allowed)
        assert again.news == [
            "will be deleted when all checks have passed: M1 search, M2, M2 search "
            "(M1 is not what M1 search was made from)"
        ]
        again.give_back()
        assert (run.path / "M2" / "manifest.json").exists()
    again = RunDirectory(get_config(), run.path, "M1")
    again.accept()
    assert (
        names(run) == ["manifest.json"] and not (run.path / "M2/search.json").exists()
    )
    again.check()
    (line,) = RunDirectory(get_config(), run.path, "M1").news
    assert line.startswith("--redo=M1: nothing is deleted")


def test_pairs_that_have_changed_name_what_was_made_from_them(run):
    searched(run, 1, "{} ")
    with pytest.raises(ValueError, match="pairs is not what M2 was made from.*redo=M2"):
        run.check()


def test_a_damaged_model_stays_until_an_equal_one_is_made(run):
    folder = run.path / "M1"
    for digest, left in (("one", []), ("other", ["manifest.damaged.json", "params.d"])):
        (folder / "params").mkdir()
        stages.lose(folder / "manifest.json")
        assert not (folder / "params").exists()
        model(run, 1, digest, {})
        found = [n.replace("params.damaged", "params.d") for n in names(run)]
        assert [name for name in found if "damaged" in name or ".d" in name] == left
    with pytest.raises(
        ValueError, match=r"bit for bit, which is in .*/M1/\*.damaged\*"
    ):
        run.check()


def test_inputs_of_earlier_versions_are_read(run):
    path = run.path / "M1" / "search.json"
    old = {"M1": rundir.file_digest(path.with_name("manifest.json"))}
    kept = files.read_json(path) | {"inputs": old}
    files.write_json(path, kept)
    run.check()
    assert run.stage("search", path, run.model_digest(1)).done == kept
