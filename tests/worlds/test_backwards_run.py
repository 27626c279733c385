"""A run on backward programs from its data to its measures; the gold judges."""

import pytest
from tiny_config import changed

from stepjax import config, iterate, records
from stepjax.lm import files
from stepjax.pairs import Pair
from stepjax.worlds import backwards

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.mark.slow
def test_an_oracle_prefers_right_steps_and_its_pairs_hold_steps_not_taught(
    tmp_path,
):
    c = changed(data__world="backwards", iterations=1, judge__by="oracle")
    c.data.questions = (48,)
    c.model.hidden_size = 32
    c.search.on_tie = "append"
    rate = config.optimizer(1e-2, b2=0.98)
    shares = {"ift": 0.9, "eft": 0.1, "epochs": 0, "batch_size": 16}
    c.sft.phases = (config.phase("only", steps=240, optimizer=rate, **shares),)
    iterate.run(c, tmp_path)
    pairs = records.read_jsonl(tmp_path / "M1/pairs.jsonl", Pair)
    taught = backwards.split(0, taught=6, unseen=1).taught
    solved = [backwards.task_of(backwards.read_step(pair.chosen)) for pair in pairs]
    new = [task for task in solved if task not in taught]
    assert len(pairs) > 5 and new
    measured = files.read_json(tmp_path / "eval/M2_pairs_training.json")["metrics"]
    assert measured["pairs_right"] == measured["judge_sampled"] == 1.0
    unseen = files.read_json(tmp_path / "eval/M2_unseen_greedy.json")["metrics"]
    assert unseen["count"] == 24
