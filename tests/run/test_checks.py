"""Checks made before anything is compiled: settings, mesh, splits, budgets."""

import dataclasses

import pytest
import tiny_eft_config
from runs import make_mesh
from tiny_config import changed

from stepjax import config, judge
from stepjax.initial_data import prm
from stepjax.lm import model as lm
from stepjax.lm import sharding
from stepjax.records import Problem, Question, StepLabels
from stepjax.run import checks
from stepjax.settings import from_config, model_config

# Settings.


def assert_refused(c, words):
    """The settings are refused with these words; "" says that they are accepted."""
    if not words:
        checks.check_settings(from_config(c))
        return
    with pytest.raises(ValueError) as error:
        checks.check_settings(from_config(c))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("search.on_tie", "append", "Append", "one of ('back', 'append')"),
        ("judge.mode", "logprob", "", "one of ('generate', 'logprob')"),
        ("dpo.reference", "live", "dead", "one of ('precomputed', 'live')"),
        (
            "data.world",
            "arithmetic",
            "chess",
            "one of ('', 'arithmetic', 'word_problems')",
        ),
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
    c = changed()
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
        (
            {"judge.by": "oracle", "data.world": ""},
            "or 'oracle' in a world (data.world)",
        ),
        ({"judge.by": "oracle", "data.world": "word_problems"}, ""),
        (RATED | {"data.world": "word_problems"}, "'ratings'; expected 'comparisons'"),
        ({"sft.from_policy": True}, "=True; expected False without data.make_eft"),
        ({"data.drills": -1}, "data.drills=-1"),
        ({"data.explanations": "long"}, "='long'; expected one of ('short', 'worked',"),
        (RATED | {"judge.by": "random"}, "judge.by='random'; expected 'self' with jud"),
        (RATED | {"judge.mode": "logprob"}, "judge.mode='logprob'; expected 'generate"),
        (RATED | {"pairs.best_beats_all": True}, "='ratings': ratings compare nothing"),
    ],
)
def test_settings_of_controls_fit_together(changes, words):
    c = changed()
    c.update_from_flattened_dict(changes)
    assert_refused(c, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"teacher.backend": "local", "teacher.model": "hf:folder"}, ""),
        (
            {"judge.kind": "ratings"},
            "judge.kind='ratings'; expected 'comparisons' with",
        ),
        (
            {"data.world": ""},
            "teacher.backend='world'; expected 'http', 'local' or 'replay', because",
        ),
        (
            {"teacher.backend": "local", "teacher.model": "M1"},
            "teacher.model='M1'; expected '' for M0, or 'hf:DIR', with",
        ),
        (
            {"prm.language_weight": -0.5},
            "prm.language_weight=-0.5; expected at least 0",
        ),
        (
            {"mcts.phase.eft": 0.5},
            "shares of mcts.phase=(1.0, 0.5); expected ift above",
        ),
        ({"mcts.phase.batch_size": 0}, "batch_size of sft phase 'policy'=0; expected"),
        ({"prm.phase.ift": 0.5}, "shares of prm.phase=(0.5, 1.0); expected ift 0 and"),
        ({"prm.phase.optimizer.schedule": "step"}, "schedule='step'; expected"),
        ({"prm.labels": "gold", "data.corrupted_count": 5}, ""),
        (
            {"prm.labels": "gold", "teacher.backend": "local", "data.world": ""},
            "prm.labels='gold'; expected a file or 'rollouts', because only a world",
        ),
        (
            {"data.corrupted_count": 5, "teacher.backend": "local", "data.world": ""},
            "data.corrupted_count=5; expected 0, because only a world",
        ),
        ({"mcts.undecided_share": 0.5}, ""),
        (
            {"mcts.undecided_share": 0.5, "teacher.undecided_margin": 0.0},
            "mcts.undecided_share=0.5; expected below 1, and 0 unless teacher.undec",
        ),
        ({"mcts.undecided_share": 1.0}, "mcts.undecided_share=1.0; expected below 1"),
    ],
)
def test_settings_of_a_run_that_makes_its_eft_rows(changes, words):
    c = tiny_eft_config.get_config()
    c.update_from_flattened_dict(changes)
    assert_refused(c, words)
    if "phase" not in words and "schedule" not in words:  # of no other run
        c.data.make_eft = False
        c.search.on_tie = "append"
        checks.check_settings(from_config(c))


PROBLEM = "8*7+4*4+2"
LABELLED = StepLabels("x", PROBLEM, ("Step 1: 8*7+4=0",), (1.0,))
FILES = {
    "ift": [PROBLEM] * 8,
    "tree_questions": [Question("short", "5*3+1"), Question("long", PROBLEM)],
    "labels": [LABELLED, dataclasses.replace(LABELLED, steps=("Step 1: no",))],
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prm.prompt": "Is it right?"}, "template 'prm.prompt' has no {problem}; exp"),
        (
            {"prm.prompt": "{problem}"},
            "template 'prm.prompt' ends with '{problem}'; ex",
        ),
        ({"teacher.backend": "http"}, "teacher.model is empty; expected the name"),
        (
            {"teacher.backend": "http", "teacher.model": "m"},
            "teacher.url=''; expected an address such as",
        ),
        ({"teacher.backend": "replay"}, "teacher.file is empty; expected the file of"),
        (
            {"teacher.backend": "replay", "teacher.file": "/none/such.jsonl"},
            "/none/such.jsonl",
        ),
        (
            {"teacher.backend": "local", "teacher.model": "hf:/none/such"},
            "/none/such/config.json",
        ),
        (
            {"teacher.backend": "local", "teacher.timeout": 0.0},
            "teacher.timeout=0.0; e",
        ),
        (
            {"prm.labels": "rollouts", "rollouts.problems": 5},
            "prm.heldout_count=6 with 5 problems whose steps rollouts label; expected",
        ),
    ],
)
def test_what_would_stop_a_run_while_it_makes_its_eft_rows(changes, words, codec):
    c = tiny_eft_config.changed(prm__heldout_count=6)
    checks.check_initial_data(from_config(c), codec, FILES)
    c.update_from_flattened_dict(changes)
    with pytest.raises(ValueError) as error:
        checks.check_initial_data(from_config(c), codec, FILES)
    assert words in str(error.value)


def test_budgets_of_the_prm_to_the_token(codec):
    c = tiny_eft_config.changed(search__max_step_tokens=5)
    c.prm.prompt = "Is each step of this right?\n{problem}\n"
    asked = len(prm.context(codec, prm.Solving(PROBLEM, ()), c.prm.prompt))
    assert asked > len(codec.solve_prompt(PROBLEM))
    c.search.context_tokens = asked + 5
    c.train.row_length = size = len(prm.tree(codec, LABELLED, c.prm.prompt).tokens)
    longer = dataclasses.replace(LABELLED, steps=("Step 1: 8*7+4=0, so 0",))
    files = FILES | {"labels": [longer, LABELLED]}  # one of them fits
    checks.check_initial_data(from_config(c), codec, files)
    c.search.context_tokens -= 1
    words = (
        f"'long': the PRM's prompt and one step .* need {asked + 5} tokens; expected"
    )
    with pytest.raises(ValueError, match=words):
        checks.check_initial_data(from_config(c), codec, files)
    c.search.context_tokens += 1
    c.train.row_length -= 1
    words = (
        f"all 2 rows of labelled steps have more than train.row_length={size - 1} tok"
    )
    with pytest.raises(ValueError, match=words):
        checks.check_initial_data(from_config(c), codec, files)
    c.prm.labels_count = 0
    with pytest.raises(ValueError, match="prm.labels_count=0 makes no step labels"):
        checks.check_initial_data(from_config(c), codec, files | {"labels": []})


def test_a_tokenizer_that_cannot_tell_the_labels_apart(codec, monkeypatch):
    c = tiny_eft_config.get_config()
    monkeypatch.setattr(codec, "line", lambda text: (7,))
    with pytest.raises(ValueError, match="writes '[+]' as .* Use another tokenizer"):
        checks.check_initial_data(from_config(c), codec, FILES)


def test_phases_out_of_range():
    c, rate = changed(), config.optimizer(1e-3)
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
    c = changed()
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


# Splits.


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


# Budgets.


def test_budgets_to_the_token(codec):
    files = {
        "test": [Problem("short", "5*3+1", "6"), Problem("long", "8*7+4*4+2", "2")]
    }
    solve = len(codec.solve_prompt("8*7+4*4+2"))
    judged = len(codec.judge_context("8*7+4*4+2", ()))
    assert solve > len(codec.solve_prompt("5*3+1")) and judged > 1
    c = changed(search__max_step_tokens=5, judge__max_tokens=1)
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
