"""Settings as typed values: those of the config, and what follows from several."""

import dataclasses
import json

import pytest
from tiny_config import changed, get_config

from stepjax.lm import hf_config
from stepjax.settings import from_config, model_config


def settings(**changes):
    """The typed settings of the tiny run with some changed."""
    return from_config(changed(**changes))


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
    assert model.pop("adapters") is None  # those of the section lora
    in_files_only = {
        "rope_scaling",
        "qk_norm",
        "post_norms",
        "norm_offset",
        "activation",
        "scale_embeddings",
        "query_scalar",
        "local_layers",
        "local_rope_theta",
        "sliding_window",
    }
    defaults = {field.name: field.default for field in dataclasses.fields(typed.shape)}
    for name in in_files_only:  # of models that are not random
        assert model.pop(name) == defaults[name]
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


def test_adapters_belong_to_the_shape_of_every_model(tmp_path):
    typed = settings(lora__rank=4, lora__alpha=2.0, lora__layers=("query", "up"))
    adapters = typed.shape.adapters
    assert dataclasses.asdict(adapters) == {
        "rank": 4,
        "alpha": 2.0,
        "layers": ("query", "up"),
    }
    assert adapters.scale == 0.5
    assert model_config(typed, 128).adapters == adapters
    values = hf_config.config_to_hf(
        dataclasses.replace(typed.shape, vocab_size=128),
        stop_ids=(1,),
        bos_id=None,
        dtype="float32",
    )
    (tmp_path / "config.json").write_text(json.dumps(values))
    typed = settings(model__init=f"hf:{tmp_path}", lora__rank=3)
    assert model_config(typed, 128).adapters.rank == 3


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


def test_vocabulary_of_the_model(tmp_path):
    sizes = [model_config(settings(), size).vocab_size for size in (121, 128, 129)]
    assert sizes == [128, 128, 136]
    shape = model_config(settings(model__vocab_size=200), 128)
    assert (shape.vocab_size, shape.hidden_size, shape.init_std) == (200, 16, 0.1)
    words = "the tokenizer has 201 ids and the model's vocabulary 200; expected at most"
    with pytest.raises(ValueError, match=words) as error:
        model_config(settings(model__vocab_size=200), 201)
    assert "raise model.vocab_size" in str(error.value)
    values = hf_config.config_to_hf(shape, stop_ids=(1,), bos_id=None, dtype="float32")
    (tmp_path / "config.json").write_text(json.dumps(values))
    c = changed(model__init=f"hf:{tmp_path}", model__hidden_size=99)
    assert model_config(from_config(c), 200).hidden_size == 16  # its own shape
    with pytest.raises(ValueError, match="201 ids and the model's vocabulary 200"):
        model_config(from_config(c), 201)
    with pytest.raises(ValueError, match="'zeros'; expected 'random', 'hf:DIR' or"):
        model_config(settings(model__init="zeros"), 128)
