"""The settings: the paper's values, locked, and the same after a trip through JSON."""

import importlib.util
import json
import pathlib

import ml_collections
import pytest

from stepjax import config, settings, sft
from stepjax.lm import train
from stepjax.run import ranges, world_rows

FILES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    """What a config file gives, as ``--config=FILE`` calls it."""
    spec = importlib.util.spec_from_file_location("config_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def test_defaults_are_those_of_the_paper():
    c = config.default()
    assert (c.iterations, c.data.questions) == (3, (400, 800, 1200))
    assert (c.search.width, c.search.max_expansions) == (6, 20)
    assert (c.search.temperature, c.search.top_p, c.search.on_tie) == (
        0.5,
        0.95,
        "back",
    )
    assert (c.judge.mode, c.judge.score, c.judge.temperature) == ("generate", "sum", 0)
    assert (c.dpo.batch_size, c.dpo.epochs, c.dpo.nll_weight) == (32, 1, 0)
    assert c.dpo.optimizer.learning_rate == 5e-7
    (phase,) = c.sft.phases
    assert (phase.ift, phase.eft, phase.epochs, phase.steps) == (1, 1, 3, 0)
    assert (phase.batch_size, phase.optimizer.learning_rate) == (32, 1e-6)
    text = (c.prompts.step, c.prompts.verdict, c.sft.verdict_weight)
    assert text == ("Step {n}: ", "[[{side}]]", 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: setattr(c.search, "widht", 3), 'Did you mean "width"'),
        (lambda c: setattr(c, "serch", 3), 'Did you mean "search"'),
        (lambda c: setattr(c.sft.phases[0], "epocs", 3), 'Did you mean "epochs"'),
        (lambda c: setattr(c.sft.phases[0].optimizer, "rate", 3), '"rate" does not'),
        (lambda c: setattr(c.dpo.optimizer, "b3", 3), '"b3" does not exist'),
        (lambda c: setattr(c.search, "width", "3"), "cannot be casted"),
        (lambda c: setattr(c.search, "width", 2.5), "cannot be casted"),
        (lambda c: setattr(c.sft.phases[0], "steps", "many"), "cannot be casted"),
        (lambda c: setattr(c.data, "questions", 400), "cannot be casted"),
    ],
)
def test_unknown_names_and_wrong_types(change, words):
    before = config.to_dict(config.default())
    c = config.default()
    with pytest.raises((AttributeError, TypeError), match=words):
        change(c)
    assert config.to_dict(c) == before


def test_settings_are_not_shared():
    before = config.to_dict(config.default())
    c = config.default()
    c.sft.phases[0].optimizer.learning_rate = 1.0
    c.dpo.optimizer.schedule = "cosine"
    c.model.num_layers = 9
    assert config.to_dict(config.default()) == before
    rate = config.optimizer(1e-3)
    a, b = (config.phase(name=name, optimizer=rate) for name in "ab")
    a.optimizer.learning_rate = 2.0
    assert (b.optimizer.learning_rate, rate.learning_rate) == (1e-3, 1e-3)


def test_phases_and_optimizers_have_the_fields_of_the_code():
    phase, rate = config.phase(), config.optimizer(0.5)
    made = sft.Phase(**phase.to_dict() | {"optimizer": None})
    assert vars(made) == phase.to_dict() | {"optimizer": None}
    assert train.OptimizerOptions(**rate) == train.OptimizerOptions(0.5)
    assert set(rate) == set(train.OptimizerOptions._fields)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_files(path):
    c = load(path)
    assert isinstance(c, ml_collections.ConfigDict) and c.is_locked
    assert set(c) == set(config.default()) and c != config.default()
    typed = settings.from_config(c)
    ranges.check(c)
    settings.templates(typed.texts, world_rows.templates(c.data.world))
    assert not c.data.questions or len(c.data.questions) >= c.iterations
    text = json.dumps(config.to_dict(c))
    back = config.from_dict(json.loads(text))
    assert back == c and back.is_locked
    assert [type(p) for p in back.sft.phases] == [type(p) for p in c.sft.phases]
    assert json.dumps(config.to_dict(back)) == text


def test_json_of_several_phases():
    c = config.default()
    rates = [config.optimizer(1e-3, "cosine"), config.optimizer(2e-3, warmup_steps=7)]
    c.sft.phases = tuple(
        config.phase(
            name, ift=i / 4, eft=1 - i / 4, epochs=0, steps=10 + i, optimizer=rate
        )
        for i, (name, rate) in enumerate(zip(("one", "two"), rates, strict=True))
    )
    c.data.questions = (1, 2)
    values = json.loads(json.dumps(config.to_dict(c)))
    assert values["data"]["questions"] == [1, 2]
    assert [p["optimizer"]["schedule"] for p in values["sft"]["phases"]] == [
        "cosine",
        "constant",
    ]
    assert config.from_dict(values) == c
    values = config.to_dict(c)
    values["search"]["widht"] = 4
    with pytest.raises(KeyError, match="widht"):
        config.from_dict(values)
    values = config.to_dict(c)
    values["search"]["width"] = "four"
    with pytest.raises(TypeError, match="four"):
        config.from_dict(values)
