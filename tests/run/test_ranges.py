"""What every setting may be: said at once, for all that are wrong, without JAX."""

import math

import pytest
import tiny_eft_config
from tiny_config import changed

from stepjax import (
    config,
    controls,
    dpo,
    judge,
    pointwise,
    search,
    self_judge,
    tournament,
)
from stepjax.lm import attention
from stepjax.lm import model as lm
from stepjax.run import judge_rules, ranges
from stepjax.worlds import word_problems_judgments


def assert_refused(c, words):
    """The settings are refused with these words; "" says that they are accepted."""
    if not words:
        ranges.check(c)
        return
    with pytest.raises(ValueError) as error:
        ranges.check(c)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        (
            "search.on_tie",
            "append",
            "Append",
            "one of ('back', 'append') (did you mean \"append\"?)",
        ),
        ("judge.mode", "logprob", "", "one of ('generate', 'logprob')"),
        ("dpo.reference", "live", "dead", "one of ('precomputed', 'live')"),
        (
            "data.world",
            "arithmetic",
            "chess",
            "one of ('', 'arithmetic', 'backwards', 'word_problems')",
        ),
        ("judge.score", "sum", "wins", f"one of {(*judge.SCORES, pointwise.SCORE)}"),
        ("seed", 2**32 - 1, 2**32, "0 to 4,294,967,295"),
        ("seed", 0, -1, "0 to 4,294,967,295"),
        ("iterations", 0, -1, "0 to 1,000"),
        ("data.test_count", 0, -5, "0 to 100,000,000"),
        ("train.log_every", 1, 0, "1 to 100,000,000"),
        ("train.micro_batches", 1, 0, "1 to 65,536"),
        ("search.width", 2, 1, "2 to 1,000"),
        ("search.temperature", 0.1, -0.5, "0 to 100"),
        ("judge.temperature", 0.0, math.nan, "0 to 100"),
        ("search.top_p", 1.0, 1.01, "above 0 and at most 1"),
        ("judge.top_p", 0.01, 0.0, "above 0 and at most 1"),
        ("judge.rows", 1, 0, "1 to 1,000,000"),
        ("dpo.batch_size", 1, 0, "1 to 1,000,000"),
        ("dpo.beta", 0.01, 0.0, "above 0 and at most 1,000"),
        (
            "judge.by",
            "oracle",
            "me",
            "one of ('self', 'random', 'oracle', 'prm', 'http'), or module:function",
        ),
        ("search.propose_by", "m:f", "me", "one of ('self',), or module:function"),
        ("judge.kind", "comparisons", "page", "one of ('comparisons', 'ratings')"),
        ("improve_by", "dpo", "luck", "one of ('dpo', 'sft')"),
        ("pairs.min_margin", 0.0, -1.0, "0 to 1,000,000"),
        ("dpo.label_smoothing", 0.49, 0.5, "0 to below 0.5"),
    ],
)
def test_settings_out_of_range(name, good, bad, words):
    c = changed()
    c.update_from_flattened_dict({name: good})
    ranges.check(c)
    c.update_from_flattened_dict({name: bad})
    with pytest.raises(ValueError) as error:
        ranges.check(c)
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
        (
            {"judge.score": "rating"},
            "expected one of ('sum', 'consistent', 'single', 'po",
        ),
        (RATED | {"judge.schedule": "swiss"}, "'swiss'; expected 'full' with judge.k"),
        (
            {"judge.by": "oracle", "data.world": ""},
            "or 'oracle' in a world (data.world)",
        ),
        ({"judge.by": "oracle", "data.world": "word_problems"}, ""),
        (RATED | {"data.world": "word_problems"}, ""),
        ({"sft.from_policy": True}, "=True; expected False without data.make_eft"),
        ({"sft.verdict_words": ("right", "")}, "=('right', ''); expected a tuple of"),
        ({"sft.verdict_words": ("right,wrong",)}, "expected a tuple of words without"),
        (
            {"eval.benchmarks": ("a.jsonl", "")},
            "('a.jsonl', ''); expected a tuple of f",
        ),
        (
            {"eval.benchmarks": (3,)},
            "eval.benchmarks=(3,); expected a tuple of files, ",
        ),
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
        ({"teacher.backend": "local", "teacher.model": "gguf:m.gguf"}, ""),
        (
            {"teacher.backend": "local", "teacher.model": "gguf:"},
            "teacher.model='gguf:'; expected '' for M0, 'hf:DIR' or 'gguf:FILE'",
        ),
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
            "teacher.model='M1'; expected '' for M0, 'hf:DIR' or 'gguf:FILE' with",
        ),
        (
            {"prm.language_weight": -0.5},
            "prm.language_weight=-0.5; expected 0 to 1,000",
        ),
        (
            {"mcts.phase.eft": 0.5},
            "mcts.phase.ift, mcts.phase.eft=(1.0, 0.5); expected ift above",
        ),
        ({"mcts.phase.batch_size": 0}, "mcts.phase.batch_size=0; expected"),
        (
            {"prm.phase.ift": 0.5},
            "prm.phase.ift, prm.phase.eft=(0.5, 1.0); expected ift 0 and",
        ),
        (
            {"prm.phase.optimizer.schedule": "step"},
            "schedule='step'; expected one of ('constant', 'cosine')",
        ),
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
            "mcts.undecided_share=0.5; expected 0 unless teacher.undec",
        ),
        (
            {"mcts.undecided_share": 1.0},
            "mcts.undecided_share=1.0; expected 0 to below 1",
        ),
    ],
)
def test_settings_of_a_run_that_makes_its_eft_rows(changes, words):
    c = tiny_eft_config.get_config()
    c.update_from_flattened_dict(changes)
    assert_refused(c, words)
    single = ("phase", "schedule", "language_weight", "below 1")  # of every run
    if not any(part in words for part in single):
        c.data.make_eft = False
        c.search.on_tie = "append"
        ranges.check(c)


def test_phases_out_of_range():
    c, rate = changed(), config.optimizer(1e-3)
    for phases, words in [
        ((), r"names of sft.phases=\[\]; expected at least one phase"),
        (2 * (config.phase("a"),), r"=\['a', 'a'\]; .*every name once"),
        ((config.phase("b", batch_size=0),), r"sft.phases\[0\].batch_size=0; expected"),
        (
            (config.phase("p", epochs=3, steps=9),),
            r"\[0\].epochs, sft.phases\[0\].steps=\(3, 9\); expected exactly one",
        ),
        (
            (config.phase(optimizer=config.optimizer(1.0, "step")),),
            r"sft.phases\[0\].optimizer.schedule='step'; expected one of",
        ),
    ]:
        c.sft.phases = phases
        with pytest.raises(ValueError, match=words):
            ranges.check(c)
    c.sft.phases = (config.phase("a", optimizer=rate), config.phase("b"))
    ranges.check(c)
    c.dpo.optimizer.schedule = "linear"
    with pytest.raises(
        ValueError, match=r"'linear'; expected one of \('constant', 'cosine'\)"
    ):
        ranges.check(c)


# The table.


def leaves(section, at=""):
    for name, value in section.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{at}{name}.")
        elif name != "phases":
            yield f"{at}{name}", value


def test_every_number_has_a_range_and_every_default_is_in_it():
    c = config.default()
    c.data.world = "arithmetic"
    ranges.check(c)
    every = dict(leaves(c))
    known = ranges.SETTINGS.keys() | {"mesh.data", "mesh.fsdp", "mesh.tensor"}
    numbers = {n for n, v in every.items() if type(v) in (int, float)}
    assert numbers - known == set() and len(numbers) > 90
    assert ranges.SETTINGS.keys() <= every.keys()
    phase = dict(leaves(config.phase()))
    assert phase.keys() - {"name"} == {
        name.removeprefix("prm.phase.")
        for name in ranges.SETTINGS
        if name.startswith("prm.phase.")
    }


def test_slips_are_refused_in_every_number():
    every = dict(leaves(config.default()))
    for name, allowed in ranges.SETTINGS.items():
        if isinstance(allowed, tuple):
            continue
        slips = [-1, 10**16]
        if type(every[name]) is float:
            slips = [-1.0, 1e16, math.nan, math.inf, -math.inf]
        for value in slips:
            c = config.default()
            c.update_from_flattened_dict({name: value})
            assert_refused(c, f"{name}={value!r}; expected {allowed}.")
        for value in (allowed.least, allowed.most):
            inside = value == allowed.least and not allowed.above
            inside |= value == allowed.most and not allowed.below
            assert (value in allowed) == inside


def test_all_that_is_wrong_is_said_at_once():
    c = changed(model__num_layers=0, search__width=1, dpo__beta=math.nan)
    c.sft.phases[1].optimizer.learning_rate = math.inf
    c.mesh.fsdp = -1
    with pytest.raises(ValueError) as error:
        ranges.check(c)
    assert str(error.value).split("\n") == [
        "model.num_layers=0; expected 1 to 1,000.",
        "search.width=1; expected 2 to 1,000.",
        "dpo.beta=nan; expected above 0 and at most 1,000.",
        "sft.phases[1].optimizer.learning_rate=inf; expected above 0 and at most 10.",
        "mesh.data, mesh.fsdp, mesh.tensor=(-1, -1, 1); expected at most one -1.",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model.num_heads": 3, "model.num_kv_heads": 2},
            "num_heads=3; expected a mul",
        ),
        ({"model.head_dim": 7}, "model.head_dim=7; expected an even number, because"),
        ({"model.init": "/some/folder"}, "'/some/folder'; expected 'random', 'hf:DIR'"),
        ({"model.init": "hf:"}, "model.init='hf:'; expected 'random', 'hf:DIR' (a"),
        (
            {"mesh.data": 0},
            "mesh.data=0; expected -1 (what the other axes leave), or 1",
        ),
        ({"data.questions": ()}, "data.questions=(); expected numbers from 1 to"),
        ({"data.questions": (3, 0)}, "data.questions=(3, 0); expected numbers from 1"),
        ({"data.questions": (3, "x")}, "data.questions=(3, 'x'); expected numbers"),
        ({"data.questions": (3,)}, ""),  # the last number goes on
    ],
)
def test_settings_of_the_model_and_of_lists(changes, words):
    c = changed()
    c.update_from_flattened_dict(changes)
    assert_refused(c, words)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("search.on_reject", "resampel"),
        ("judge.learn", "outcom"),
        ("data.taught_results", 11),
        ("dpo.optimizer.learning_rate", -1.0),
        ("sft.phases[0].epochs", -1),
    ],
)
def test_a_setting_that_is_wrong_by_itself_is_refused_once(name, value):
    c = changed()
    if name.startswith("sft.phases[0]."):
        c.sft.phases[0][name.partition("].")[2]] = value
    else:
        c.update_from_flattened_dict({name: value})
    (said,) = ranges.wrong(c)
    assert said.startswith(f"{name}={value!r}; expected ")


def test_words_are_those_that_the_code_knows():
    for name, known in {
        "judge.by": (*controls.JUDGES, *judge_rules.FOREIGN),
        "judge.value": judge.VALUES,
        "judge.mode": self_judge.MODES,
        "judge.score": (*judge.SCORES, pointwise.SCORE),
        "search.on_reject": search.ON_REJECT,
        "judge.schedule": tuple(tournament.SCHEDULES),
        "search.on_tie": search.ON_TIE,
        "dpo.reference": dpo.REFERENCES,
        "model.remat": tuple(lm.REMAT),
        "model.attention": attention.KINDS,
        "data.explanations": word_problems_judgments.EXPLANATIONS,
    }.items():
        assert ranges.SETTINGS[name] == known
