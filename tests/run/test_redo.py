"""Settings that change on an existing run: taken over, refused, or made again."""

import pytest
from tiny_config import changed, get_config

from stepjax import config
from stepjax.lm import files, hosts
from stepjax.run import redo
from stepjax.run.rundir import RunDirectory

FINISHED = {
    "data/manifest.json": "{}",
    "data/ift.jsonl": "",
    "data/questions_1.jsonl": "",
    "data/questions_2.jsonl": "",
    "tokenizer/tokenizer.json": "{}",
    "M1/manifest.json": "{}",
    "M1/params/array": "1",
    "M1/search.json": "{}",
    "M1/search.jsonl": "",
    "M1/pairs.jsonl": "",
    "M2/manifest.json": "{}",
    "M2/params/array": "2",
    "M2/search.partial.jsonl": "",
    "eval/M0_test_greedy.json": "{}",
    "eval/M1_test_greedy.json": "{}",
    "eval/M2_test_greedy.json": "{}",
}


@pytest.fixture
def folder(tmp_path):
    """A run with M1, its search, M2, and a search of M2 that has begun."""
    path = tmp_path / "run"
    RunDirectory(get_config(), path)
    for name, text in FINISHED.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in paths} - {"config.json"}


def kept(folder):
    return files.read_json(folder / "config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 3},
        {"iterations": 1},
        {"search__slots": 16, "mesh__fsdp": 4, "mesh__data": 2},
        {"eval__max_tokens": 64, "eval__search_count": 3},
        {"eval__grading": "strict"},
        {"eval__benchmarks": ("gsm8k.jsonl", "tfds:my_set/test")},
        {"train__log_every": 7, "train__checkpoint_every": 3},
        {"train__micro_batches": 2, "model__remat": "full", "judge__rows": 3},
        {"data__questions": (24, 24, 99), "iterations": 3},
        {"lora__alpha": 1.0, "lora__layers": ("key",)},  # there are no adapters
        {"data__questions": (24,)},  # the last number goes on, so it is the same
        {"dpo__reference": "live", "teacher__concurrency": 2},
    ],
)
def test_changes_that_no_result_depends_on_are_taken_over(folder, changes):
    settings = changed(**changes)
    claimed = RunDirectory(settings, folder)
    assert kept(folder) == config.to_dict(settings)
    assert contents(folder) == set(FINISHED)
    (news,) = claimed.news
    name = next(iter(changes)).replace("__", ".")
    assert news.startswith("settings: ") and f"{name} was " in news
    assert RunDirectory(settings, folder).news == []


@pytest.mark.parametrize(
    ("changes", "stage", "names"),
    [
        ({"dpo__beta": 0.3}, "dpo", "M2, M2 search"),
        ({"dpo__updates": (5, 6)}, "dpo", "M2, M2 search"),
        ({"improve_by": "sft"}, "dpo", "M2, M2 search"),
        ({"search__width": 4}, "search", "M1 search, M2, M2 search"),
        ({"pairs__min_margin": 2}, "search", "M1 search, M2, M2 search"),
        ({"judge__max_tokens": 9}, "search", "M1 search, M2, M2 search"),
        ({"sft__verdict_weight": 2.0}, "sft", "M1, M1 search, M2, M2 search"),
        ({"model__num_layers": 3}, "sft", "M1, M1 search, M2, M2 search"),
        ({"prompts__judge": "x"}, "sft", "M1, M1 search, M2, M2 search"),
        ({"data__ift_count": 9}, "prepare", "the data, M1, M1 search, M2, M2 search"),
        ({"seed": 1}, "prepare", "the data, M1, M1 search, M2, M2 search"),
        (
            {"data__questions": (24, 9)},
            "prepare",
            "the data, M1, M1 search, M2, M2 search",
        ),
    ],
)
def test_changes_that_a_result_depends_on_name_its_stage(folder, changes, stage, names):
    settings, before = changed(**changes), kept(folder)
    with pytest.raises(ValueError) as error:
        RunDirectory(settings, folder)
    name = next(iter(changes)).replace("__", ".")
    assert f"{folder}: {name} was " in str(error.value)
    words = f"Add --redo={stage} to delete {names} and make them again, or use another"
    assert words in str(error.value)
    assert kept(folder) == before and contents(folder) == set(FINISHED)
    later = list(redo.DEPENDS)[list(redo.DEPENDS).index(stage) + 1 :]
    for other in later:
        with pytest.raises(ValueError, match=f"Add --redo={stage} to"):
            RunDirectory(settings, folder, redo=other)
    claimed = RunDirectory(settings, folder, redo=stage)
    words = f"will be deleted when all checks have passed: {names} ({name} was "
    assert claimed.news[0].startswith(words)
    assert kept(folder) == config.to_dict(settings)
    claimed.accept()
    deleted = set(FINISHED) - contents(folder)
    first = names.split(",")[0]
    assert deleted >= {f for f in FINISHED if f.startswith("M2/")}
    assert ("M1/search.json" in deleted) == (first != "M2")
    assert ("M1/manifest.json" in deleted) == (first in ("M1", "the data"))
    assert ("eval/M1_test_greedy.json" in deleted) == (first in ("M1", "the data"))
    assert ("eval/M0_test_greedy.json" in deleted) == (first == "the data")
    assert "eval/M2_test_greedy.json" in deleted
    # The same command after a kill deletes nothing more.
    left = contents(folder)
    again = RunDirectory(settings, folder, redo=stage)
    assert contents(folder) == left and "nothing is deleted" in again.news[0]


def test_a_change_for_iterations_to_come_is_taken_over(tmp_path):
    folder = tmp_path / "run"
    RunDirectory(changed(dpo__updates=(5, 5)), folder)
    for name in ("M1/manifest.json", "M2/manifest.json"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("{}")
    RunDirectory(changed(dpo__updates=(5, 7, 9), iterations=3), folder)
    with pytest.raises(ValueError, match="Add --redo=dpo to delete M2 and make"):
        RunDirectory(changed(dpo__updates=(6, 7, 9), iterations=3), folder)


def test_with_ratings_a_search_depends_on_the_tokens_of_a_solution(folder):
    files.write_json(
        folder / "config.json", config.to_dict(changed(judge__kind="ratings"))
    )
    longer = changed(judge__kind="ratings", eval__max_tokens=64)
    with pytest.raises(ValueError, match="eval.max_tokens was 32, now 64. M1 search"):
        RunDirectory(longer, folder)


def test_settings_of_a_run_that_could_not_begin_are_given_back(folder):
    before = kept(folder)
    claimed = RunDirectory(changed(mesh__fsdp=3), folder)
    assert kept(folder) != before
    claimed.give_back()
    assert kept(folder) == before


def test_a_measurement_of_other_settings_is_made_anew(tmp_path):
    target, inputs = tmp_path / "run/eval/M1_test_greedy.json", {"benchmark": "a"}
    first = RunDirectory(get_config(), tmp_path / "run")
    first.measurement("greedy", target, inputs).commit(metrics={"accuracy": 1.0})
    assert first.measurement("greedy", target, inputs).done["metrics"]
    # These do not change what greedy solutions are.
    same = RunDirectory(changed(eval__search_count=1, search__slots=2), first.path)
    assert same.measurement("greedy", target, inputs).done
    other = RunDirectory(changed(eval__max_tokens=64), first.path)
    assert other.measurement("greedy", target, inputs).done is None
    assert not target.exists()
    other.measurement("greedy", target, inputs).commit(metrics={})
    assert other.measurement("greedy", target, {"benchmark": "b"}).done is None


def test_a_command_that_only_looks_leaves_the_settings_as_they_are(folder):
    before = bytes_of(folder)
    same = RunDirectory(get_config(), folder, keep=True)
    assert same.news == [] and not same.borrowed and same.variant("greedy", 1) == ""
    other = RunDirectory(changed(eval__max_tokens=64), folder, keep=True)
    said = "for this command only: eval.max_tokens was 32, now 64"
    assert other.news == [f"{said}. {folder / 'config.json'} stays as it is"]
    assert other.borrowed and bytes_of(folder) == before
    # What does not depend on it has the names of the run's own results.
    assert other.variant("judge", 1) == other.variant("search", 0) == ""
    name = other.variant("greedy", 1)
    assert len(name) == 9 and name.startswith("-")
    longer = RunDirectory(changed(eval__max_tokens=65), folder, keep=True)
    assert longer.variant("greedy", 1) not in ("", name)
    # A search can be measured with other settings than that which made the pairs.
    wide = RunDirectory(changed(search__width=5, judge__rows=2), folder, keep=True)
    assert wide.borrowed and "search.width was 3, now 5" in wide.news[0]
    assert wide.variant("greedy", 1) == "" != wide.variant("search", 1)
    with pytest.raises(ValueError, match="Add --redo=dpo to delete M2, M2 search"):
        RunDirectory(changed(dpo__beta=0.3), folder, keep=True)
    with pytest.raises(ValueError, match="Add --redo=search to delete M1 search, M2"):
        RunDirectory(changed(search__width=5, dpo__beta=0.3), folder, keep=True)
    assert bytes_of(folder) == before


def test_without_data_the_settings_are_those_that_make_them(tmp_path):
    RunDirectory(get_config(), tmp_path / "run")
    settings = changed(data__ift_count=9)
    claimed = RunDirectory(settings, tmp_path / "run", keep=True)
    assert kept(tmp_path / "run") == config.to_dict(settings)
    assert not claimed.borrowed


def test_a_random_m0_is_told_from_that_of_other_settings(tmp_path):
    folder = tmp_path / "run"
    RunDirectory(get_config(), folder)
    (folder / "data").mkdir()
    (folder / "data/manifest.json").write_text("{}")
    wider = RunDirectory(changed(model__hidden_size=32), folder, keep=True)
    assert wider.variant("greedy", 1) == "" != wider.variant("greedy", 0)


def test_a_judge_of_ones_own_is_told_from_the_model(tmp_path):
    own = config.to_dict(changed(judge__by="own_code:score"))
    assert redo.measured_with(own, "search")["judge.by"] == "own_code:score"
    coin = config.to_dict(changed(judge__by="random"))  # the model judges all the same
    assert "judge.by" not in redo.measured_with(coin, "search")


def test_every_stage_depends_on_settings_that_there_are():
    every = {name for name, _ in flat(config.to_dict(config.default()))}
    sections = {name.rpartition(".")[0] for name in every}
    sections |= {section.rpartition(".")[0] for section in sections}
    groups = (*redo.DEPENDS.values(), *redo.MEASURED.values(), redo._FREE)
    for names in groups:
        assert set(names) <= every | sections, names
    of_some_stage = {name for names in redo.DEPENDS.values() for name in names}
    depended = (*of_some_stage, *redo._FREE, "eval")
    for name in every:
        assert any(f"{name}.".startswith(f"{part}.") for part in depended), name


def flat(values, at=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value


REDONE = [
    ({"dpo__beta": 0.7}, "dpo"),
    ({"search__width": 9}, "search"),
    ({"train__row_length": 33}, "sft"),
    ({"seed": 1}, "prepare"),
]


def bytes_of(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("changes", "stage"), REDONE)
def test_settings_that_cannot_work_take_nothing_away(folder, changes, stage):
    before = bytes_of(folder)
    claimed = RunDirectory(changed(**changes), folder, redo=stage)
    assert contents(folder) != set(FINISHED)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/manifest.json").write_text("half made")  # before a check failed
    claimed.give_back()
    assert bytes_of(folder) == before


@pytest.mark.parametrize(("changes", "stage"), REDONE)
def test_a_killed_command_takes_nothing_away(folder, changes, stage):
    before = bytes_of(folder)
    RunDirectory(changed(**changes), folder, redo=stage)
    again = RunDirectory(get_config(), folder)
    assert again.news == ["brought back what a command that was killed had replaced"]
    assert bytes_of(folder) == before


def test_a_deletion_that_was_cut_off_is_finished(folder):
    RunDirectory(changed(dpo__beta=0.7), folder, redo="dpo")
    (folder / "replaced/record.json").unlink()
    again = RunDirectory(changed(dpo__beta=0.7), folder)
    assert not (folder / "replaced").exists() and again.news == []


def test_a_run_that_could_not_begin_leaves_the_data_as_they_were(folder):
    before = bytes_of(folder)
    claimed = RunDirectory(changed(iterations=3), folder)
    (folder / "data/questions_3.jsonl").write_text("new")
    (folder / "data/manifest.json").write_text("with three")
    claimed.give_back()
    assert bytes_of(folder) == before


def test_settings_that_are_newer_than_a_run_have_their_defaults(folder):
    theirs = kept(folder)
    del theirs["data"]["drills"], theirs["sft"]["from_policy"]
    files.write_json(folder / "config.json", theirs)
    assert RunDirectory(get_config(), folder).news == []
    with pytest.raises(ValueError, match="data.drills was 0, now 3"):
        RunDirectory(changed(data__drills=3), folder)


def test_another_host_leaves_what_the_first_one_set_aside(folder, monkeypatch):
    settings = changed(dpo__beta=0.7)
    RunDirectory(settings, folder, redo="dpo")
    before = bytes_of(folder)
    assert folder / "replaced/record.json" in before
    monkeypatch.setattr(hosts, "first", lambda: False)
    other = RunDirectory(settings, folder, redo="dpo")
    other.accept()
    other.give_back()
    assert bytes_of(folder) == before


def test_a_run_that_could_not_begin_keeps_the_settings_as_they_were_written(folder):
    theirs = kept(folder)
    del theirs["data"]["drills"]
    files.write_json(folder / "config.json", theirs)
    RunDirectory(changed(iterations=3), folder).give_back()
    assert kept(folder) == theirs


@pytest.mark.parametrize(("kind", "depends"), [("comparisons", 0), ("ratings", 1)])
def test_the_longest_solution_decides_a_search_for_whole_solutions(kind, depends):
    c = changed(judge__kind=kind)
    longer = changed(judge__kind=kind, eval__max_tokens=40)
    one, other = (redo.measured_with(config.to_dict(x), "search") for x in (c, longer))
    assert (one != other) == depends
