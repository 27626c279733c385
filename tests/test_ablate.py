"""The control experiments: one M1, the same questions, the same number of updates."""

import pathlib
import runpy
import shutil

import numpy as np
import pytest
import tiny_eft_config
from runs import contents, finished_eft_run, made_once
from tiny_config import get_config

from stepjax import ablate, config, iterate, records, srlm
from stepjax.cli import arguments, help
from stepjax.initial_data import eft_stage, stages
from stepjax.lm import files
from stepjax.pairs import Pair
from stepjax.run import finetune, ranges, redo
from stepjax.run.run import Run
from stepjax.trajectory import from_row
from stepjax.worlds import arithmetic

SEEDS = (3, 4)  # of the second seed there is a copy of the first, with other accuracies

pytestmark = pytest.mark.usefixtures("quick_runs")


def settings():
    c = get_config()
    c.iterations = 1
    c.data.questions = (24,)
    c.data.unseen_blocks = 4
    c.data.guessed_share = 0.2
    c.model.hidden_size = 32
    rates = config.optimizer(1e-2, b2=0.98)
    c.sft.phases = (  # enough for steps of the right form, so some of them right
        config.phase(
            "only",
            ift=0.8,
            eft=0.2,
            epochs=0,
            steps=240,
            batch_size=16,
            optimizer=rates,
        ),
    )
    c.train.row_length = 96
    c.search.context_tokens = 96
    c.search.on_tie = "append"
    c.judge.context_tokens = 96
    c.srlm.max_tokens = 40
    return c


@pytest.fixture(scope="module")
def ablation():
    return made_once("ablation", two_seeds)


def two_seeds(folder):
    ablate.ablate(settings(), folder, SEEDS[:1])
    first, second = (folder / f"seed_{seed}" for seed in SEEDS)
    shutil.copytree(first, second)
    for path in second.glob("*/config.json"):
        files.write_json(path, files.read_json(path) | {"seed": SEEDS[1]})
    for place, path in enumerate(sorted(second.glob("*/eval/*.json"))):
        content = files.read_json(path)
        if "accuracy" in content["metrics"]:
            content["metrics"]["accuracy"] = place / 1000
            files.write_json(path, content)
    ablate.ablate(settings(), folder, SEEDS)


def manifest(folder, seed, arm, name="M2/manifest.json"):
    return files.read_json(folder / f"seed_{seed}" / arm / name)


def test_arms_differ_in_one_thing_only(ablation):
    seed = SEEDS[0]
    first = manifest(ablation, seed, "self", "M1/manifest.json")
    updates = manifest(ablation, seed, "self")["counts"]["updates"]
    assert updates > 2
    models = set()
    for arm in ablate.ARMS:
        assert manifest(ablation, seed, arm)["counts"]["updates"] == updates
        models.add(str(manifest(ablation, seed, arm)["arrays"]))
        run = ablation / f"seed_{seed}" / arm
        for name in ("ift", "questions_1", "test", "unseen"):
            own = ablation / f"seed_{seed}" / "self" / "data" / f"{name}.jsonl"
            assert (run / "data" / own.name).read_bytes() == own.read_bytes()
        before = manifest(ablation, seed, arm, "M1/manifest.json")
        assert (before["arrays"] == first["arrays"]) == (arm != "srlm")
    assert len(models) == len(ablate.ARMS)  # and the arms end in different models


def searches(ablation, arm):
    path = ablation / f"seed_{SEEDS[0]}" / arm / "M1" / "search.jsonl"
    return [from_row(row) for _, row in records.read_objects(path)]


def pairs(ablation, arm):
    path = ablation / f"seed_{SEEDS[0]}" / arm / "M1" / "pairs.jsonl"
    return records.read_jsonl(path, Pair)


def test_the_oracle_prefers_right_steps_and_coins_do_not(ablation):
    shares = {}
    for arm in ("oracle", "random"):
        states = {state.question.id: state for state in searches(ablation, arm)}
        made = pairs(ablation, arm)
        right = []
        for pair in made:
            steps = [s.text for s in states[pair.problem_id].steps[: pair.step - 1]]
            right.append(arithmetic.is_right(pair.problem, steps, pair.chosen))
            assert not arithmetic.is_right(pair.problem, steps, pair.rejected) or (
                arm == "random"
            )
        shares[arm] = np.mean(right)
        assert len(made) > 5
    assert shares["oracle"] == 1.0 and shares["random"] < 0.7


def test_more_sft_searches_nothing(ablation):
    folder = ablation / f"seed_{SEEDS[0]}" / "sft"
    assert not (folder / "M1" / "search.jsonl").exists()
    assert manifest(ablation, SEEDS[0], "sft")["stage"] == "more_sft"


def test_srlm_compares_whole_solutions_by_their_ratings(ablation):
    folder = ablation / f"seed_{SEEDS[0]}" / "srlm"
    rows = records.read_jsonl(folder / "data" / "eft.jsonl", srlm.Rating)
    assert len(rows) == 96  # one row per problem
    states = searches(ablation, "srlm")
    assert all(len(state.steps) <= 1 for state in states)
    for state in states:
        for expansion in state.expansions:
            assert [(v.a, v.b) for v in expansion.verdicts] == [
                (i, i) for i in range(len(expansion.candidates))
            ]
    made = pairs(ablation, "srlm")
    assert made and all(pair.step == 1 for pair in made)
    for pair in made:
        chosen, rejected = (
            pair.scores[[c.text for c in states_of(states, pair)].index(text)]
            for text in (pair.chosen, pair.rejected)
        )
        assert chosen > rejected


def states_of(states, pair):
    (state,) = [s for s in states if s.question.id == pair.problem_id]
    return state.expansions[0].candidates


def test_the_table_holds_what_the_runs_measured(ablation):
    found = files.read_json(ablation / "ablation.json")
    assert found["seeds"] == list(SEEDS) and set(found["arms"]) == set(ablate.ARMS)
    for arm, runs in found["arms"].items():
        for seed, run in zip(SEEDS, runs, strict=True):
            folder = ablation / f"seed_{seed}" / arm
            for place, number in enumerate((1, 2)):
                for mode, name in {
                    "greedy": f"M{number}_test_greedy",
                    "unseen": f"M{number}_unseen_greedy",
                    "search": f"M{number}_test_search",
                    "judge": f"M{number}_heldout_judge",
                }.items():
                    made = files.read_json(folder / "eval" / f"{name}.json")
                    assert run[mode][place] == made["metrics"]["accuracy"]
    lines = (ablation / "ablation.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len({len(row) for row in cells}) == 1 and len(cells) == 2 + 5
    assert [row[0] for row in cells[2:]] == [
        *("self-judge", "random judge", "oracle judge (gold)"),
        *("more SFT", "SRLM (whole solutions)"),
    ]
    column = dict(zip(cells[0], cells[2], strict=True))
    greedy = np.array([run["greedy"] for run in found["arms"]["self"]]) * 100
    assert column["greedy M1"] == f"{greedy[:, 0].mean():.1f}"
    assert column["gain of each seed"] == " ".join(
        f"{gain:+.1f}" for gain in greedy[:, 1] - greedy[:, 0]
    )
    oracle = np.array([run["greedy"] for run in found["arms"]["oracle"]]) * 100
    share = np.mean(greedy[:, 1] - greedy[:, 0]) / np.mean(oracle[:, 1] - oracle[:, 0])
    assert column["of the oracle's gain [95 %]"].split()[0] == f"{share:.2f}"
    assert (ablation / "ablation.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def own_ablation(ablation, tmp_path):
    """A copy to write to: another worker may be reading the one that all share."""
    return pathlib.Path(shutil.copytree(ablation, tmp_path / "ablation"))


def test_the_same_command_again_runs_nothing(own_ablation, monkeypatch):
    before = contents(own_ablation)

    def refuse(*args, **kwargs):
        raise AssertionError("must not be called")

    for owner, name in (
        (iterate, "_train_on_pairs"),
        (finetune, "fit_phase"),
        (Run, "fit"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    ablate.ablate(settings(), own_ablation, SEEDS)
    after = contents(own_ablation)
    for found in (before, after):
        del found["ablation.png"]  # holds a date
    assert after == before


def test_one_seed_alone_and_fewer_arms(own_ablation, capsys):
    text = ablate.ablate(settings(), own_ablation, SEEDS[:1], ("random",))
    assert "inf" not in text and "more SFT" not in text
    assert "oracle" not in text
    assert text in capsys.readouterr().out


def test_wrong_requests_are_refused_before_any_work(tmp_path):
    for seeds, arms in (((1, 1), ("self",)), ((), ("self",)), ((1,), ("coin",))):
        with pytest.raises(ValueError, match="expected arms of"):
            ablate.ablate(settings(), tmp_path / "x", seeds, arms)
    assert not (tmp_path / "x").exists()


def test_a_self_judge_without_pairs_is_refused(ablation, tmp_path, monkeypatch):
    # What a run without pairs leaves: test_a_model_without_pairs_goes_on_unchanged.
    own = tmp_path / "seed_3" / "self"
    shutil.copytree(ablation / "seed_3" / "self", own)
    made = files.read_json(own / "M2/manifest.json")
    made["counts"]["updates"] = 0
    files.write_json(own / "M2/manifest.json", made)
    monkeypatch.setattr(iterate, "run", lambda *arguments: None)
    with pytest.raises(ValueError, match=r"updates of the iterations are \(0,\)"):
        ablate.ablate(settings(), tmp_path, (3,), ("random",))
    assert not (tmp_path / "seed_3" / "random").exists()


def test_arm_settings():
    base = settings()
    before = config.to_dict(base)
    c = {arm: ablate.arm_config(base, arm, 7, (5,)) for arm in ablate.ARMS}
    assert config.to_dict(base) == before
    assert {made.seed for made in c.values()} == {7}
    assert {made.dpo.updates for made in c.values()} == {(5,)}
    assert [made.judge.by for made in c.values()] == [
        *("self", "random", "oracle", "self", "self")
    ]
    assert [made.improve_by for made in c.values()].count("sft") == 1
    assert c["srlm"].judge.kind == "ratings"


def test_arms_of_other_judges_change_the_judge_alone():
    base = settings()
    base.pairs.min_margin, base.judge.votes = 2.0, 3
    made = {a: ablate.arm_config(base, a, 7, (5,)) for a in ("self", *ablate.FURTHER)}
    plain = config.to_dict(made["self"])
    changed = {a: set(redo.changes(plain, config.to_dict(c))) for a, c in made.items()}
    assert changed == {
        "self": set(),
        "frozen": {"judge.model"},
        "keep": {"judge.keep"},
        "pointwise": {"judge.score", "pairs.min_margin"},
        "consistency": {"judge.learn"},
        "outcome": {"judge.learn"},
    }
    assert made["frozen"].judge.model == "M1" and made["keep"].judge.keep == 1
    for c in made.values():
        ranges.check(c)


@pytest.mark.parametrize(
    ("name", "value"), [("schedule", "swiss"), ("mode", "logprob")]
)
def test_ratings_can_stand_beside_any_way_to_compare(name, value):
    base = settings()
    base.judge[name] = value
    for arm in ablate.ARMS:
        ranges.check(ablate.arm_config(base, arm, 7, (5,)))


def test_ratings_take_over_nothing_that_they_do_not_have():
    base = settings()
    base.judge.value, base.judge.votes, base.pairs.min_margin = "probability", 3, 0.2
    base.judge.learn = "consistency"
    for arm in ablate.ARMS:
        ranges.check(ablate.arm_config(base, arm, 7, (5,)))
    base.judge.learn, base.judge.score = "none", "pointwise"
    base.judge.model = "M1"
    base.search.on_reject = "resample"
    for arm in ablate.ARMS:
        ranges.check(ablate.arm_config(base, arm, 7, (5,)))


@pytest.mark.parametrize("arm", ablate.FURTHER)
def test_an_arm_that_is_the_method_itself_is_refused(arm, tmp_path):
    base = settings()
    base.judge.votes = 3
    c = ablate.arm_config(base, arm, 7)
    with pytest.raises(ValueError, match=f"expected arms without '{arm}', because the"):
        ablate.ablate(c, tmp_path / "x", (0,), ("random", arm))
    assert not (tmp_path / "x").exists()


def test_an_arm_that_cannot_work_is_refused_before_the_first_one_runs(tmp_path):
    with pytest.raises(ValueError, match="judge.votes=1; expected 3 or more with"):
        ablate.ablate(settings(), tmp_path / "x", (0,), ("consistency",))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["quickstart", "backwards", "smollm2_word_problems"])
def test_every_arm_of_an_example_is_accepted(name, tmp_path, monkeypatch):
    # How many updates an arm will make is known when the first one has run, not before.
    class Begun(Exception):
        pass

    def begin(*arguments):
        raise Begun

    monkeypatch.setattr(iterate, "run", begin)
    path = pathlib.Path(__file__).parents[1] / "configs" / f"{name}.py"
    example = runpy.run_path(str(path))["get_config"]()
    assert example.dpo.optimizer.warmup_steps > 1
    arms = ("self", "random", "oracle", "sft", "frozen", "pointwise")
    with pytest.raises(Begun):
        ablate.ablate(example, tmp_path / "x", (0,), arms)


def test_the_command_knows_all_arms():
    known = help.OPTIONS["arms"][0].split(",")
    assert (*known, *arguments._FURTHER_ARMS) == (*ablate.ARMS, *ablate.FURTHER)


def test_arms_share_the_eft_rows_that_the_first_made(tmp_path, monkeypatch):
    one, other = tmp_path / "seed_0" / "self", tmp_path / "seed_0" / "random"
    shutil.copytree(finished_eft_run(), one)
    made = []
    monkeypatch.setattr(stages, "_train", lambda *args, **options: made.append("train"))
    monkeypatch.setattr(stages, "_search", lambda *args: made.append("search"))
    monkeypatch.setattr(eft_stage, "_teacher", lambda *args: made.append("teacher"))
    ablate.ablate(tiny_eft_config.get_config(), tmp_path, (0,), ("random",))
    assert made == []
    for name in ("data/eft.jsonl", "init/pairs.jsonl", "init/eft.json"):
        assert (other / name).read_bytes() == (one / name).read_bytes()
    assert not (other / "init/prm/params").exists()  # M1 does not need it
    first, second = (files.read_json(f / "M1/manifest.json") for f in (one, other))
    assert first == second
    first, second = (files.read_json(f / "M2/manifest.json") for f in (one, other))
    assert first["counts"]["updates"] == second["counts"]["updates"]
    assert first["arrays"] != second["arrays"]


def test_a_teacher_of_steps_makes_no_ratings(tmp_path):
    with pytest.raises(ValueError, match="expected arms without 'srlm', because"):
        ablate.ablate(tiny_eft_config.get_config(), tmp_path / "x", (0,))
    assert not (tmp_path / "x").exists()
