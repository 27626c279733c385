"""Settings as typed values: those of the config, and what follows from several."""

import dataclasses

import pytest
from tiny_config import get_config

from stepjax.settings import from_config


def settings(**changes):
    """The typed tiny run's settings; "__" stands for a dot."""
    c = get_config()
    values = {name.replace("__", "."): value for name, value in changes.items()}
    c.update_from_flattened_dict(values)
    return from_config(c)


@pytest.mark.parametrize(
    "name", ["train", "search", "judge", "srlm", "pairs", "data", "eval"]
)
def test_a_section_holds_the_values_of_the_config(name):
    c = get_config()
    assert dataclasses.asdict(getattr(from_config(c), name)) == c[name].to_dict()


def test_sections_of_another_shape_hold_the_values_of_the_config():
    c = get_config()
    typed = from_config(c)
    assert (typed.seed, typed.iterations, typed.improve_by) == (0, 2, "dpo")
    model = dataclasses.asdict(typed.shape) | {"init": typed.init}
    assert model.pop("rope_scaling") is None  # of hf: directories only
    assert model == c.model.to_dict()
    assert typed.mesh._asdict() == c.mesh.to_dict()
    assert dataclasses.asdict(typed.texts) == c.prompts.to_dict()
    assert typed.sft.verdict_weight == c.sft.verdict_weight
    for phase, expected in zip(typed.sft.phases, c.sft.phases, strict=True):
        values = vars(phase) | {"optimizer": phase.optimizer._asdict()}
        assert values == expected.to_dict()
    values = dataclasses.asdict(typed.dpo)
    values |= values.pop("loss") | {"optimizer": typed.dpo.optimizer._asdict()}
    assert values == c.dpo.to_dict()


def test_settings_are_frozen_and_know_nothing_of_later_changes():
    c = get_config()
    typed = from_config(c)
    c.search.width = 5
    assert typed.search.width == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        typed.search.width = 5


def test_what_follows_from_several_settings():
    typed = settings()
    assert typed.sampling_tensor == 1
    assert [typed.dpo.updates_of(n) for n in (1, 2)] == [0, 0]
    typed = settings(
        search__tensor=4,
        mesh__tensor=2,
        dpo__updates=(7, 5),
    )
    assert typed.sampling_tensor == 4
    assert [typed.dpo.updates_of(n) for n in (1, 2)] == [7, 5]
    assert settings(mesh__tensor=2).sampling_tensor == 2
