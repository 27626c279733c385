"""configs/own_model.py with tests/own_data and a small Hugging Face folder, to the end;
and a run whose judge and proposer are functions of its own.
"""

import json
import pathlib
import runpy

import chat_tokenizers
import jax
import pytest
from fakes import random_parameters
from runs import command

from stepjax import config, iterate, records
from stepjax.lm import export, files, tokenizer
from stepjax.lm import model as lm
from stepjax.pairs import Pair
from stepjax.run import judges

pytestmark = pytest.mark.usefixtures("quick_runs")
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A Hugging Face folder: a decoder of width 16 with a tokenizer of 483 ids."""
    root = tmp_path_factory.mktemp("weights")
    ids = tokenizer.load(chat_tokenizers.write("qwen", root / "tokenizer"))
    shape = lm.ModelConfig(
        vocab_size=-(-ids.vocab_size // 8) * 8,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=24,
    )
    params = random_parameters(lm.abstract_params(lm.Decoder(shape)))
    export.save_hf(
        jax.device_get(params),
        shape,
        root / "model",
        tokenizer_directory=ids.directory,
        stop_ids=ids.stop_ids,
    )
    return root / "model"


SMALL = {
    "prompts.solve": "Solve: {problem}\n",
    "prompts.judge": "Judge: {problem}\n{steps}\n{a}\n{b}\n",
    "train.row_length": 512,
    "search.width": 2,
    "search.max_step_tokens": 12,
    "search.max_expansions": 2,
    "search.context_tokens": 256,
    "judge.max_tokens": 12,
    "judge.context_tokens": 256,
    "eval.max_tokens": 12,
    "eval.search_count": 1,
}


def test_own_model_and_own_data_run_to_the_end(weights, tmp_path, capsys):
    names = f"{weights},{ROOT / 'tests' / 'own_data'}"
    arguments = [f"--config={ROOT / 'configs' / 'own_model.py'}:{names}"]
    arguments += [f"--config.{name}={value}" for name, value in SMALL.items()]
    assert command("run", *arguments, f"--workdir={tmp_path / 'run'}") == 0
    counts = files.read_json(tmp_path / "run/data/manifest.json")["counts"]
    expected = {"ift": 8, "eft": 8, "heldout": 2, "questions_1": 6, "test": 4}
    assert counts == expected
    assert (tmp_path / "run/M2/manifest.json").exists()
    tested = files.read_json(tmp_path / "run/eval/M2_test_greedy.json")
    assert tested["metrics"]["count"] == 4
    (row, *_) = map(json.loads, (tmp_path / "run/data/ift.jsonl").open())
    assert row["steps"][1].endswith("are left. The answer is \\boxed{19}.")


OWN = """
def score(choices):
    assert all(len(choice.candidates) > 1 for choice in choices)
    return [[int(step[-1]) for step in choice.candidates] for choice in choices]


def propose(places):
    step = [str(len(place.steps) + 1) for place in places]
    assert all(place.width == 3 for place in places)
    return [[f"{n}*1+0={n}", f"Step {n}: {n}*1+0=9", ""] for n in step]
"""


def test_a_run_whose_judge_and_proposer_are_functions_of_ones_own(
    weights, tmp_path, monkeypatch
):
    def refuse(*args, **options):
        raise AssertionError("the model must not judge")

    (tmp_path / "own_run_code.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judges, "make_judge", refuse)
    names = f"{weights},{ROOT / 'tests' / 'own_data'}"
    c = runpy.run_path(str(ROOT / "configs" / "own_model.py"))["get_config"](names)
    c.update_from_flattened_dict(
        SMALL | {"search.width": 3, "search.max_step_tokens": 24}
    )
    c.judge.by, c.search.propose_by = "own_run_code:score", "own_run_code:propose"
    c.judge.context_tokens = 1  # of a judge that is not asked
    # The model need not learn to judge.
    c.data.eft = ""
    c.sft.phases = (config.phase(eft=0.0, epochs=1, batch_size=4),)
    iterate.run(c, tmp_path / "run")
    counts = files.read_json(tmp_path / "run/data/manifest.json")["counts"]
    assert (counts["ift"], counts["eft"], counts["heldout"]) == (8, 0, 0)
    pairs = records.read_jsonl(tmp_path / "run/M1/pairs.jsonl", Pair)
    searched = [
        row for _, row in records.read_objects(tmp_path / "run/M1/search.jsonl")
    ]
    made = [expansion for row in searched for expansion in row["expansions"]]
    # No step is final: each of the 6 questions uses its 2 expansions for pairs.
    assert len(pairs) == len(made) == 12
    assert {(e["malformed"], e["action"]) for e in made} == {(1, "pair")}
    for pair in pairs:
        n = pair.step
        assert pair.chosen == f"Step {n}: {n}*1+0=9"
        assert pair.rejected == f"Step {n}: {n}*1+0={n}"
        assert pair.chosen_logp < 0 and pair.rejected_logp < 0
        assert pair.verdicts[0][3] == f"A {n}, B 9"
    trained = files.read_json(tmp_path / "run/M2/manifest.json")["counts"]
    assert trained["pairs"] == 12 and trained["updates"] == 2
    measured = sorted(path.stem for path in (tmp_path / "run/eval").iterdir())
    assert "M2_test_search" in measured
    assert not any("judge" in name for name in measured)
