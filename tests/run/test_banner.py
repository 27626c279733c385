"""What a run says first."""

import pytest
from small_models import small_decoder

from stepjax import config, settings
from stepjax.lm import files
from stepjax.run import banner


@pytest.mark.parametrize(
    ("made", "place"),
    [
        ([], "goes on, no model made yet"),
        (["M1/manifest"], "goes on after M1 sft"),
        (["M1/manifest", "M1/search"], "goes on after M1 search"),
        (["M1/manifest", "M1/search", "M2/manifest"], "goes on after M2 dpo"),
        (
            ["M1/manifest", "M1/search", "M2/manifest", "M2/search", "M3/manifest"],
            "all models are there",
        ),
    ],
)
def test_a_run_says_where_it_goes_on(tmp_path, made, place):
    c = config.default()
    c.iterations = 2
    for name in made:
        files.write_json(tmp_path / f"{name}.json", {})
    assert banner.place_in(tmp_path, settings.from_config(c), False) == place
    assert banner.place_in(tmp_path, settings.from_config(c), True) == "new"
    c.improve_by = "sft"  # a control, which searches nothing
    found = banner.place_in(tmp_path, settings.from_config(c), False)
    place = place.replace("M1 search", "M1 sft")  # a search alone makes no model
    assert found == place.replace("M2 dpo", "M2 sft")


def test_devices_model_and_data_have_a_line_each(tmp_path, one_device):
    counts = {"counts": {"ift": 96, "questions_1": 24}}
    files.write_json(tmp_path / "data" / "manifest.json", counts)
    model = small_decoder(64, one_device)
    run, devices, shape, data = banner.lines(tmp_path, "new", model, "hf:DIR")
    assert run == f"run: {tmp_path}, new"
    assert devices.startswith("devices: 8 × cpu, as a mesh of 1 data × 1 fsdp × 1 ten")
    size = model.config
    inner = size.num_heads * size.head_dim + 2 * size.num_kv_heads * size.head_dim
    layer = size.hidden_size * (inner + size.num_heads * size.head_dim)
    layer += 3 * size.hidden_size * size.intermediate_size + 2 * size.hidden_size
    layer += inner if size.qkv_bias else 0
    tables = 1 if size.tie_embeddings else 2
    total = tables * size.vocab_size * size.hidden_size + size.hidden_size
    total += size.num_layers * layer
    assert f"hf:DIR, {total:,} parameters, {size.num_layers} layers of" in shape
    assert data == "data: 96 ift, 24 questions_1 (rows)"
