"""A run that makes its EFT rows: policy, PRM, tree search, teacher, filter.

One finished run (`runs.finished_eft_run`) is looked at by most tests; those that
change it take a copy.
"""

import dataclasses
import json
import os
import re
import shutil
import signal

import pytest
import tiny_eft_config
from gguf_models import write_world_model
from runs import (
    CONFIG,
    command,
    contents,
    copy_eft_run,
    finished_eft_run,
    kill,
    poison_gold,
)

from stepjax import interrupts, iterate, records
from stepjax.config import to_dict
from stepjax.initial_data import eft, eft_stage, mcts, prm, stages, teacher_local
from stepjax.initial_data.step_values import StepValues
from stepjax.lm import export, files, pretrained, train
from stepjax.lm import model as lm
from stepjax.records import Comparison, Question, StepLabels
from stepjax.run import rundir
from stepjax.run.journal import Journal
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run
from stepjax.worlds import arithmetic, arithmetic_teacher

pytestmark = pytest.mark.usefixtures("quick_runs")

EFT_CONFIG = CONFIG.with_name("tiny_eft_config.py")
MADE = ("init/trees.jsonl", "init/pairs.jsonl", "init/teacher.jsonl")
MADE += ("init/dropped.jsonl", "data/eft.jsonl")
AFTER_PRM = ("init/*.json*", "data/eft.jsonl", "M1", "M2", "eval")  # to be left out


@pytest.fixture(scope="module")
def made(quick_runs, tmp_path_factory):
    """A copy of the finished run, of this worker; read only."""
    folder = tmp_path_factory.mktemp("made") / "run"
    return shutil.copytree(finished_eft_run(), folder)


def manifest(folder, name):
    return files.read_json(folder / "init" / f"{name}.json")


def assert_same(folder, made, names=MADE):
    """The same files, models, and metrics of the initial stages."""
    for name in names:
        assert (folder / name).read_bytes() == (made / name).read_bytes(), name
    for name in ("policy", "prm"):
        one, other = (manifest(f, f"{name}/manifest") for f in (folder, made))
        assert one["arrays"] == other["arrays"] and len(one["arrays"]) > 10
        assert one.get("metrics") == other.get("metrics")
    found, expected = (
        [row for row in Monitor(f).rows() if row["model"] in ("policy", "prm")]
        for f in (folder, made)
    )
    assert found == expected and len(found) > 20


# A finished run.


def test_layout_of_the_initial_data(made):
    found = {str(p.relative_to(made)) for p in made.glob("init/*")}
    found |= {str(p.relative_to(made)) for p in made.glob("init/p*/*")}
    found |= {str(p.relative_to(made)) for p in made.glob("data/*")}
    expected = {"init/policy", "init/prm", "init/mcts.json", "init/eft.json", *MADE}
    for name in ("policy", "prm"):
        expected |= {f"init/{name}/params", f"init/{name}/manifest.json"}
    rows = ("ift", "heldout", "labels", "labels_heldout", "tree_questions")
    expected |= {f"data/{name}.jsonl" for name in (*rows, "questions_1", "test")}
    assert found == expected | {"data/manifest.json"}


def test_eft_rows_compare_steps_of_tree_questions_in_both_orders(made):
    rows = records.read_jsonl(made / "data/eft.jsonl", Comparison)
    asked = records.read_jsonl(made / "data/tree_questions.jsonl", Question)
    problems = {question.id: question.problem for question in asked}
    pairs = {pair.preference.id: pair for pair in eft_stage.read_pairs(opened(made))}
    assert len(rows) > 40 and len(pairs) > len(rows) / 2
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        name = one.id.removesuffix("-ab")
        preference, (best, worst) = pairs[name]
        assert other.id == f"{name}-ba" and best > worst
        assert problems[name.partition("/")[0]] == one.problem == other.problem
        assert one.steps == other.steps == preference.steps
        assert (one.a, one.b) == (preference.chosen, preference.rejected)
        assert (other.b, other.a) == (one.a, one.b)
        decided = (one.verdict, other.verdict) == ("A", "B")
        right = arithmetic.is_right(one.problem, one.steps, one.a)
        assert decided == right and (decided or one.verdict == other.verdict == "A")


def opened(folder):
    """Stands in for a run where only its directory is looked at."""
    config = tiny_eft_config.get_config()
    return type("Opened", (), {"dir": rundir.RunDirectory(config, folder)})


def test_pairs_are_those_of_the_trees(made):
    trees = [mcts.from_row(r) for _, r in records.read_objects(made / MADE[0])]
    asked = records.read_jsonl(made / "data/tree_questions.jsonl", Question)
    assert [tree.question for tree in trees] == asked
    pairs = [p for t in trees for p in mcts.pairs(t, per_layer=1, min_margin=0.0)]
    assert eft_stage.read_pairs(opened(made)) == pairs


def test_the_counts_add_up(made):
    counts, searched = manifest(made, "eft")["counts"], manifest(made, "mcts")["counts"]
    rows = records.read_jsonl(made / "data/eft.jsonl", Comparison)
    assert counts.pop("eft") == len(rows)
    assert sum(counts.values()) == searched["pairs"]
    kept = counts[eft.KEPT] + counts[eft.UNDECIDED]
    assert 2 * kept == len(rows) and counts[eft.KEPT] > 0 < counts[eft.UNDECIDED]
    dropped = [row for _, row in records.read_objects(made / "init/dropped.jsonl")]
    assert len(dropped) == searched["pairs"] - kept > 0
    answers = list(records.read_objects(made / "init/teacher.jsonl"))
    assert len(answers) == 2 * searched["pairs"]
    assert searched["trees"] == 40
    assert 0 < searched["tokens"] < searched["tokens_by_expansion"]
    assert searched["tokens_by_expansion"] < searched["tokens_by_node"]
    (row,) = [row for row in Monitor(made).rows() if row["stage"] == "mcts"]
    assert row["pairs"] == searched["pairs"] and "tokens" not in row


def test_manifests_hold_what_each_stage_was_made_from(made):
    inputs = {
        name: set(manifest(made, name)["inputs"])
        for name in ("policy/manifest", "prm/manifest", "mcts", "eft")
    }
    assert inputs == {
        "policy/manifest": {"ift"},
        "prm/manifest": {"labels", "labels_heldout"},
        "mcts": {"tree_questions", "policy", "prm"},
        "eft": {"pairs"},
    }
    assert manifest(made, "prm/manifest")["counts"] == {
        **{"rows": 64, "dropped": 0},
        "updates": 20,
    }
    metrics = manifest(made, "prm/manifest")["metrics"]
    rows = records.read_jsonl(made / "data/labels_heldout.jsonl", StepLabels)
    assert len(rows) == 12 and metrics["left_out"] == 0
    assert metrics["steps"] == sum(len(row.steps) for row in rows)


def test_m1_learns_from_the_rows(made):
    first = files.read_json(made / "M1/manifest.json")
    rows = records.read_jsonl(made / "data/eft.jsonl", Comparison)
    assert first["counts"]["eft"] + first["counts"]["dropped"] == len(rows)
    assert first["counts"]["eft"] > 40
    assert first["inputs"]["eft"] == rundir.file_digest(made / "data/eft.jsonl")
    assert (made / "M2/manifest.json").exists()


def test_the_same_command_again_makes_nothing(made, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("must not be called")

    before = contents(made)
    for owner, name in ((Run, "fit"), (Run, "save"), (eft_stage, "_teacher")):
        monkeypatch.setattr(owner, name, refuse)
    iterate.run(tiny_eft_config.get_config(), made)
    assert contents(made) == before


# What goes on after a kill, and what is refused.


@pytest.mark.slow
def test_kills_at_every_stage(made, tmp_path):
    folder = tmp_path / "run"

    def killed(owner, name, when):
        with kill(owner, name, when) as calls, pytest.raises(KeyboardInterrupt):
            stages.make(Run(tiny_eft_config.get_config(), folder))
        return len(calls)

    def before(stage):
        return lambda count, args: args[0].name == stage

    # Update 25 of the policy; saved at 20. Then before its manifest.
    killed(train, "put_batch", lambda count, args: count == 25)
    assert (folder / "init/policy/train").exists()
    killed(rundir.Stage, "commit", before("policy"))
    assert (folder / "init/policy/params").exists()
    # Update 15 of the PRM, after the last 10 of the policy; and after it was measured.
    killed(train, "put_batch", lambda count, args: count == 25)
    assert (folder / "init/prm/train").exists()
    assert not (folder / "init/policy/train").exists()
    killed(rundir.Stage, "commit", before("prm"))
    assert not (folder / "init/prm/manifest.json").exists()
    # The first, the second and the third pause of the tree search.
    journal = folder / "init/trees.partial.jsonl"
    for pause in (1, 2, 2):
        killed(Journal, "add", lambda count, args, n=pause: count == n)
    lines = journal.read_text("utf-8").splitlines()
    assert [len(json.loads(line)["closed"]) >= 8 for line in lines[1:]] == [True, True]
    with open(journal, "a", encoding="utf-8") as file:
        file.write('{"closed": [{"id": "arith-tree')  # a torn line
    # After the trees are written, and while the teacher answers.
    killed(rundir.Stage, "commit", before("mcts"))
    assert (folder / "init/pairs.jsonl").exists() and journal.exists()
    killed(eft, "keep", lambda count, args: True)
    assert not journal.exists() and not (folder / "data/eft.jsonl").exists()
    killed(rundir.Stage, "commit", before("eft"))
    stages.make(Run(tiny_eft_config.get_config(), folder))
    assert_same(folder, made)


def alike(one, other):
    """Asserts that two parsed files are the same but for 1e-4 in their numbers."""
    if isinstance(one, float):
        assert one == pytest.approx(other, abs=1.01e-4)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        alike(list(one.values()), list(other.values()))
    elif isinstance(one, list):
        for x, y in zip(one, other, strict=True):
            alike(x, y)
    else:
        assert one == other


def test_trees_do_not_depend_on_what_is_searched_beside_them(made, tmp_path):
    run = copy_eft_run(
        tmp_path / "run", *AFTER_PRM, search__slots=4, mcts__remember_tokens=0
    )
    stages.make_pairs(run)
    pairs = [records.read_objects(f / MADE[1]) for f in (tmp_path / "run", made)]
    trees = [records.read_objects(f / MADE[0]) for f in (tmp_path / "run", made)]
    for (_, one), (_, other) in (*zip(*pairs, strict=True), *zip(*trees, strict=True)):
        # The last bits of log-probabilities depend on the shape of a batch, and so may
        # the fourth digit of probabilities that are written with four. So may a token,
        # if its random number falls on the border of two; here none of them does.
        alike(one, other)
    alone, together = (
        manifest(folder, "mcts")["counts"] for folder in (tmp_path / "run", made)
    )
    for name in ("tokens_by_node", "tokens_by_expansion", "nodes", "pairs"):
        assert alone[name] == together[name]
    for counts in (alone, together):  # what the memory saves: see test_mcts
        assert counts["tokens"] < counts["tokens_by_expansion"]


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("init/pairs.jsonl", "so the stage 'mcts' is done again"),
        ("data/eft.jsonl", "so the stage 'eft' is done again"),
        ("data/labels.jsonl", "so it is made again from the settings"),
    ],
)
def test_a_damaged_file_is_made_again(name, again, tmp_path, capsys):
    copy_eft_run(tmp_path / "run")
    path = tmp_path / "run" / name
    kept = path.read_bytes()
    path.write_bytes(kept + b" \n")
    stages.make(Run(tiny_eft_config.get_config(), tmp_path / "run"))
    assert (
        f"{path} has changed since it was written, {again}" in capsys.readouterr().err
    )
    assert path.read_bytes() == kept


@pytest.mark.parametrize("name", ["policy", "prm"])
def test_another_model_is_refused(name, tmp_path):
    copy_eft_run(tmp_path / "run")
    path = tmp_path / "run" / "init" / name / "manifest.json"
    made = files.read_json(path)
    files.write_json(path, made | {"seconds": 1.5})
    stages.make(Run(tiny_eft_config.get_config(), tmp_path / "run"))  # it is the same
    made["arrays"] = dict.fromkeys(made["arrays"], "0")
    files.write_json(path, made)
    words = f"{name} is not what (init/)?(prm|mcts|M1) was made from"
    with pytest.raises(ValueError, match=words):
        stages.make(Run(tiny_eft_config.get_config(), tmp_path / "run"))


def test_search_and_teacher_never_see_gold(made, tmp_path, monkeypatch):
    folder, answers = tmp_path / "run", str(made / "init/teacher.jsonl")
    rows = [row for _, row in records.read_objects(made / "data/tree_questions.jsonl")]
    assert len(rows) == 40 and all(row.keys() == {"id", "problem"} for row in rows)
    run = copy_eft_run(
        folder, *AFTER_PRM, teacher__backend="replay", teacher__file=answers
    )
    for name in ("ift", "heldout", "test", "labels", "labels_heldout"):
        (folder / "data" / f"{name}.jsonl").unlink()
    poison_gold(monkeypatch)
    monkeypatch.setattr(arithmetic_teacher, "answers", None)
    stages.make_pairs(run)
    stages.make_eft(run)
    for name in {*MADE} - {"init/teacher.jsonl"}:
        assert (folder / name).read_bytes() == (made / name).read_bytes(), name
    with pytest.raises(ValueError, match="labels.jsonl"):  # the poison works
        stages.make_prm(run)
    with pytest.raises(AssertionError, match="gold must not be used"):
        arithmetic.solve(rows[0]["problem"])


# Other sources.


@pytest.fixture(scope="module")
def from_files(made, tmp_path_factory):
    """A run from files, with the data of the finished run and its teacher's answers."""
    folder, data = tmp_path_factory.mktemp("files"), made / "data"
    labels = [
        row
        for name in ("labels", "labels_heldout")
        for row in records.read_jsonl(data / f"{name}.jsonl", StepLabels)
    ]
    records.write_jsonl(folder / "labels.jsonl", labels)
    texts, c = arithmetic.templates(), tiny_eft_config.get_config()
    c.data.world, c.data.heldout_count = "", 5
    c.prompts.solve, c.prompts.judge = texts.solve, texts.judge
    c.prompts.step, c.prompts.verdict = texts.step, texts.verdict
    c.tokenizer = str(made / "tokenizer")
    c.data.ift, c.data.test = (str(data / f"{n}.jsonl") for n in ("ift", "test"))
    c.data.question_file = str(data / "questions_1.jsonl")
    c.prm.labels, c.prm.labels_count = str(folder / "labels.jsonl"), 0
    c.mcts.question_file = str(data / "tree_questions.jsonl")
    c.teacher.backend, c.teacher.file = "replay", str(made / "init/teacher.jsonl")
    stages.make(Run(c, folder / "run"))
    return c, folder / "run"


def test_a_run_from_files_makes_the_same(made, from_files):
    _, folder = from_files
    assert_same(folder, made, MADE[:2])
    every = records.read_jsonl(made / "data/eft.jsonl", Comparison)
    eft_rows, held = (
        records.read_jsonl(folder / "data" / f"{name}.jsonl", Comparison)
        for name in ("eft", "heldout")
    )
    problems = list(dict.fromkeys(row.problem for row in every))
    assert {row.problem for row in held} == set(problems[-5:])
    assert [row for row in every if row.problem in problems[:-5]] == eft_rows
    assert len(eft_rows) + len(held) == len(every)
    done = manifest(folder, "eft")
    assert done["counts"]["eft"] == len(eft_rows)
    assert "../data/heldout.jsonl" in done["files"]


def test_eft_count_is_a_number_of_problems(from_files, tmp_path):
    c, folder = from_files
    no_lock = shutil.ignore_patterns(".lock")
    shutil.copytree(folder, tmp_path / "run", ignore=no_lock)
    for name in ("config.json", "init/eft.json"):
        (tmp_path / "run" / name).unlink()
    c = c.copy_and_resolve_references()
    c.data.eft_count = 3
    files.write_json(tmp_path / "run/config.json", to_dict(c))
    stages.make(Run(c, tmp_path / "run"))
    rows = records.read_jsonl(tmp_path / "run/data/eft.jsonl", Comparison)
    every = records.read_jsonl(folder / "data/eft.jsonl", Comparison)
    problems = list(dict.fromkeys(row.problem for row in every))[:3]
    assert rows == [row for row in every if row.problem in problems]


def test_a_model_of_ours_as_the_teacher(made, tmp_path, monkeypatch):
    run, folder = copy_eft_run(tmp_path / "first"), tmp_path / "run"
    export.save_hf(
        run.params(1),
        run.model.config,
        tmp_path / "teacher",
        tokenizer_directory=run.codec.tokenizer.directory,
        stop_ids=run.codec.tokenizer.stop_ids,
        bos_id=run.codec.tokenizer.bos_id,
    )
    run = copy_eft_run(
        folder,
        *("init/eft.json", "init/teacher.jsonl", "data/eft.jsonl"),
        teacher__backend="local",
        teacher__model=f"hf:{tmp_path / 'teacher'}",
        teacher__max_tokens=24,
    )
    asked, local = [], eft_stage._local

    def signalled(run):
        generate = local(run)

        def answers(prompts):
            asked.append(list(prompts))
            for number, answer in enumerate(generate(prompts), 1):
                if len(asked) == 1 and number == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield answer

        return answers

    monkeypatch.setattr(eft_stage, "_local", signalled)
    interrupts.listen()
    try:
        with pytest.raises(interrupts.Stopped, match="the teacher's answers so far"):
            stages.make_eft(run)
    finally:
        interrupts.end()
    stages.make_eft(run)
    monkeypatch.undo()
    first, second = map(set, asked)
    assert second < first and len(first - second) == 3
    counts = manifest(folder, "eft")["counts"]
    rows = records.read_jsonl(folder / "data/eft.jsonl", Comparison)
    assert counts.pop("eft") == len(rows) > 2
    assert sum(counts.values()) == manifest(made, "mcts")["counts"]["pairs"]
    answers = [row for _, row in records.read_objects(folder / "init/teacher.jsonl")]
    texts = {row["prompt"]: row["text"] for row in answers}
    for row in rows:
        prompt = eft.judge_prompt(
            run.codec.templates, row.problem, row.steps, row.a, row.b
        )
        assert texts[prompt].startswith(row.explanation)
    # An untrained M0 gives no verdicts, so nothing is kept.
    run = copy_eft_run(
        tmp_path / "untrained",
        *("init/eft.json", "init/teacher.jsonl", "data/eft.jsonl"),
        teacher__backend="local",
        teacher__max_tokens=2,
    )
    with pytest.raises(ValueError, match="the filter kept none of .* pairs; expected"):
        stages.make_eft(run)
    assert len((tmp_path / "untrained/init/dropped.jsonl").read_text().splitlines())


def test_a_gguf_file_teaches_as_its_hugging_face_folder_does(codec, tmp_path):
    name = f"gguf:{tmp_path / 'm.gguf'}"
    write_world_model(tmp_path / "m.gguf", codec.tokenizer)
    changes = {"teacher__backend": "local", "teacher__max_tokens": 8}
    run = copy_eft_run(
        tmp_path / "run", "init/eft.json", teacher__model=name, **changes
    )
    folder, (own, shape) = (
        tmp_path / "folder",
        teacher_local.described(run.settings, run.codec.templates),
    )
    pretrained.save_tokenizer(name, tmp_path / "tokenizer")
    export.save_hf(
        pretrained.load(name, name[5:], lm.Decoder(shape, run.local_model.mesh)),
        shape,
        folder,
        tokenizer_directory=tmp_path / "tokenizer",
        stop_ids=own.tokenizer.stop_ids,
    )
    asked = ("5*3+1", "8*7+4+2")
    written = sorted(eft_stage._local(run)(asked))
    options = dataclasses.replace(run.settings.teacher, model=f"hf:{folder}")
    run.settings = dataclasses.replace(run.settings, teacher=options)
    assert sorted(eft_stage._local(run)(asked)) == written
    assert all(answer.text for _, answer in written)
    # It is checked as M0 is: here its vocabulary is smaller than its tokenizer.
    config = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", config | {"vocab_size": 100})
    with pytest.raises(ValueError, match="the tokenizer has 131 ids and the model's"):
        teacher_local.described(run.settings, run.codec.templates)


def test_labels_from_rollouts(tmp_path):
    c = tiny_eft_config.get_config()
    c.prm.labels, c.prm.heldout_count = "rollouts", 3
    c.rollouts.problems, c.rollouts.samples = 12, 3
    c.rollouts.temperature, c.rollouts.max_tokens = 1.0, 24
    c.rollouts.hard = True
    finished, folder = tmp_path / "whole", tmp_path / "run"
    made = finished_eft_run()
    for own in (finished, folder):  # the policy is the one of the other run
        shutil.copytree(made / "init/policy", own / "init/policy")
        files.write_json(own / "config.json", to_dict(c))
    stages.make(Run(c, finished), last="prm")
    with (
        kill(Journal, "add", lambda count, args: count == 6),
        pytest.raises(KeyboardInterrupt),
    ):
        stages.make(Run(c, folder), last="prm")
    kept = (folder / "init/values.partial.jsonl").read_text("utf-8").splitlines()
    assert len(kept) == 1 + 5
    stages.make(Run(c, folder), last="prm")
    names = ["init/values.jsonl", "data/labels.jsonl", "data/labels_heldout.jsonl"]
    for name in names:
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    values, labels, held = (
        records.read_jsonl(folder / name, kind)
        for name, kind in zip(names, (StepValues, StepLabels, StepLabels), strict=True)
    )
    ift = records.read_jsonl(folder / "data/ift.jsonl", records.Solution)[:12]
    assert [row.problem for row in values] == [row.problem for row in ift]
    problems = list(dict.fromkeys(row.problem for row in [*labels, *held]))
    assert {row.problem for row in held} == set(problems[-3:]) and len(problems) > 6
    assert {label for row in labels for label in row.labels} <= {0.0, 1.0}
    assert manifest(folder, "prm/manifest")["counts"]["rows"] == len(labels)
    assert manifest(folder, "values")["counts"]["problems"] == 12
    assert not (folder / "init/values.partial.jsonl").exists()


def test_the_prm_may_start_from_the_policy(made, tmp_path):
    run = copy_eft_run(tmp_path / "run", *AFTER_PRM, "init/prm", prm__from_policy=True)
    stages.make_prm(run)
    own = manifest(tmp_path / "run", "prm/manifest")
    assert set(own["inputs"]) == {"labels", "labels_heldout", "policy"}
    assert own["arrays"] != manifest(made, "prm/manifest")["arrays"]


# The command.


def test_init_data_says_what_it_made(made, tmp_path, capsys):
    folder = tmp_path / "run"
    copy_eft_run(folder, "init/eft.json", "data/eft.jsonl", "M1", "M2", "eval")
    problem = arithmetic.problems(1, seed=5, operations=2)[0]
    steps = arithmetic.solve(problem).steps
    texts = [step.partition(": ")[2] for step in steps]
    rows = [
        {"id": "one", "problem": problem, "steps": texts, "label": -1},
        {"id": "two", "problem": problem, "steps": texts, "label": 0},
        {"id": "three", "problem": problem, "steps": texts * 40, "label": -1},
    ]
    bench = tmp_path / "bench.jsonl"
    bench.write_text("".join(json.dumps(row) + "\n" for row in rows))
    at = f"--workdir={folder}"
    assert command("init-data", "prm", at, f"--processbench={bench}") == 0
    first, second = capsys.readouterr().out.splitlines()
    metrics = manifest(made, "prm/manifest")["metrics"]
    numbers = (
        f"accuracy {metrics['accuracy']:.4f}, auc {metrics['auc']:.4f}, left_out 0"
    )
    held_out = records.read_objects(folder / "data/labels_heldout.jsonl")
    count = sum(len(row["steps"]) for _, row in held_out)
    assert first.startswith(f"prm: {numbers}, right ")
    assert first.endswith(f", steps {count}") and 12 < count <= 24
    assert second.startswith("processbench: wrong 1, right 1, wrong_accuracy ")
    assert ", f1 " in second and second.endswith("left_out 1")
    labels = [
        StepLabels("one", problem, steps, (1,) * len(steps)),
        StepLabels("two", problem, steps, (0,) * len(steps)),
    ]
    run = Run(tiny_eft_config.get_config(), folder)
    kept, read = stages.read_steps(
        run, run.load_for_sampling(folder / "init/prm"), labels, "x"
    )
    found = prm.first_error_metrics(kept, read)
    assert f"wrong_accuracy {found['wrong_accuracy']:.4f}" in second
    assert command("init-data", "mcts", at) == 0
    counts = manifest(made, "mcts")["counts"]
    found = f"pairs {counts['pairs']}, tokens {counts['tokens']}"
    assert found in capsys.readouterr().out
    assert command("init-data", "eft", at) == 0
    assert f"eft {manifest(made, 'eft')['counts']['eft']}" in capsys.readouterr().out
    assert (folder / MADE[4]).read_bytes() == (made / MADE[4]).read_bytes()
    assert not (folder / "M1").exists()


def test_init_data_prm_makes_the_prm_alone(tmp_path, capsys):
    folder = tmp_path / "run"
    options = ("--config.prm.heldout_count=0", "--config.prm.phase.steps=2")
    start = ("init-data", "prm", f"--config={EFT_CONFIG}", f"--workdir={folder}")
    assert command(*start, *options) == 0
    assert capsys.readouterr().out == "prm: not measured, as prm.heldout_count is 0\n"
    assert {path.name for path in (folder / "init").iterdir()} == {"prm"}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (
            ("prm", f"--config={CONFIG}"),
            2,
            "data.make_eft is False .* Set data.make",
        ),
        (
            ("mcts", f"--config={CONFIG}"),
            2,
            "expected True for `stepjax init-data mc",
        ),
        (("eft", f"--config={CONFIG}"), 2, "expected True for `stepjax init-data eft`"),
        (
            ("mcts", f"--config={EFT_CONFIG}", "--processbench=x"),
            2,
            "--processbench with init-data mcts, which does not read it",
        ),
        (
            ("prm", f"--config={EFT_CONFIG}", "--processbench=missing.jsonl"),
            1,
            "missing.jsonl",
        ),
    ],
)
def test_wrong_requests_are_refused(arguments, status, words, tmp_path, capsys):
    folder = tmp_path / "run"
    assert command("init-data", *arguments, f"--workdir={folder}") == status
    assert re.search(words, capsys.readouterr().err)
    assert not (folder / "init").exists()


def test_searches_without_pairs_are_an_error(tmp_path):
    run = copy_eft_run(tmp_path / "run", *AFTER_PRM, mcts__min_margin=1.0)
    with pytest.raises(ValueError, match="of 40 questions found no pair of steps"):
        stages.make_pairs(run)
    assert not (tmp_path / "run/init/pairs.jsonl").exists()
