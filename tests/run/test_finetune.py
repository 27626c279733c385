"""A phase of SFT in a run: its metrics say how many tokens shared problems save."""

import pytest
import tiny_config

from stepjax import iterate, sft
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run


@pytest.mark.usefixtures("quick_runs")
def test_shared_problems_log_how_many_tokens_they_save(tmp_path):
    c = tiny_config.changed(sft__share_problems=True, train__row_length=128)
    c.sft.phases = tiny_config.one_phase(7)
    run = Run(c, tmp_path / "run")
    iterate.sft(run)
    rows = [r for r in Monitor(run.dir.path).rows() if r["stage"] == "sft/only"]
    assert [row["step"] for row in rows] == [5, 7]

    # The tokens of each row alone, and of the trees that were trained.
    shared, eft = run.sft_examples, run.dir.read("eft", run.kind.judgments.record)
    alone = {
        row.id: len(
            sft.judgment_tree(
                run.codec, run.kind.judgments.example(run.codec, row), 1.0
            ).tokens
        )
        for row in eft
    }
    (phase,) = run.settings.sft.phases
    drawn = sft.rows_function(phase, 0, shared.sizes, run.settings.seed)
    for row, steps in zip(rows, (range(5), range(5, 7)), strict=True):
        plain = trees = 0
        for name, place in (place for step in steps for place in drawn(step)):
            size = len(shared.trees[name][place].tokens)
            ids = shared.trees[name].id(place).split("+")
            trees += size
            plain += size if name == "ift" else sum(alone[id] for id in ids)
        assert plain > 1.1 * trees
        assert row["tree_token_ratio"] == plain / trees
