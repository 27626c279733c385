"""configs/own_model.py with tests/own_data and a small Hugging Face folder, to the end;
and a run whose judge and proposer are functions of its own.
"""

import json
import pathlib

import chat_tokenizers
import jax
import pytest
from fakes import random_parameters
from runs import command, copy_run, poison_gold

from stepjax import iterate, records
from stepjax.lm import export, files, tokenizer
from stepjax.lm import model as lm
from stepjax.pairs import Pair
from stepjax.run import rollout

pytestmark = pytest.mark.usefixtures("quick_runs")
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A Hugging Face folder: a decoder of width 16 with a tokenizer of 483 ids."""
    root = tmp_path_factory.mktemp("weights")
    ids = tokenizer.load(chat_tokenizers.write("qwen", root / "tokenizer"))
    config = lm.ModelConfig(
        vocab_size=-(-ids.vocab_size // 8) * 8,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=24,
    )
    params = random_parameters(lm.abstract_params(lm.Decoder(config)))
    export.save_hf(
        jax.device_get(params),
        config,
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


def wrong(choices):
    return [0.5 for choice in choices]
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_run_code.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


def test_a_judge_and_a_proposer_of_ones_own_make_the_pairs(
    finished, own_code, tmp_path, monkeypatch
):
    def refuse(*args, **options):
        raise AssertionError("the model must not judge")

    run = copy_run(
        tmp_path / "run",
        *("M1/search*", "M1/pairs*", "M2", "M3", "eval"),
        judge__by="own_run_code:score",
        search__propose_by="own_run_code:propose",
    )
    poison_gold(monkeypatch)
    monkeypatch.setattr(rollout, "make_judge", refuse)
    iterate.search(run, 1)
    pairs = records.read_jsonl(tmp_path / "run/M1/pairs.jsonl", Pair)
    # Every expansion makes a pair, until the context of 64 tokens is full.
    searched = [
        row for _, row in records.read_objects(tmp_path / "run/M1/search.jsonl")
    ]
    made = [expansion for row in searched for expansion in row["expansions"]]
    assert len(pairs) == len(made) > 2 * 24
    assert {(e["malformed"], e["action"]) for e in made} == {(1, "pair")}
    for pair in pairs:
        n = pair.step
        assert pair.chosen == f"Step {n}: {n}*1+0=9"
        assert pair.rejected == f"Step {n}: {n}*1+0={n}"
        assert pair.chosen_logp < 0 and pair.rejected_logp < 0
        assert pair.verdicts[0][3] == f"A {n}, B 9"


def test_a_wrong_return_value_ends_the_search_with_its_name(
    finished, own_code, tmp_path
):
    run = copy_run(
        tmp_path / "run",
        *("M1/search*", "M1/pairs*", "M2", "M3", "eval"),
        judge__by="own_run_code:wrong",
        search__propose_by="own_run_code:propose",
    )
    words = r"judge.by='own_run_code:wrong' returned 0\.5 for problem '.*'; expected a"
    with pytest.raises(ValueError, match=words):
        iterate.search(run, 1)
