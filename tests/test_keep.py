"""EFT rows in every update of step-DPO (`judge.keep`)."""

import functools

import jax
import numpy as np
import pytest
import runs
from test_dpo import MODEL, OPTIONS, ROW, batches, loose_pairs, only, parameters, worst

from stepjax import dpo, forest, iterate, records, sft
from stepjax.lm import files
from stepjax.row_trees import RowTrees
from stepjax.run import redo
from stepjax.run.monitor import Monitor


def judgments(count):
    """EFT rows of other lengths, whose last two tokens weigh three times as much."""
    rng = np.random.default_rng(8)
    trees = []
    for number in range(count):
        size = 5 + number % 3
        tokens = tuple(rng.integers(3, 20, size + 6).tolist())
        weights = [0.0] * size + [1.0] * 4 + [3.0] * 2
        trees.append(forest.path_tree(tokens, weights))
    return trees


def mixed(found, trees, size=4):
    how = {"mesh": runs.one_device_mesh(), "row_length": ROW, "seed": 9}
    return dpo.with_replay(found, trees, batch_size=size, **how)


@functools.partial(jax.jit, static_argnames=("keep",))
def _kept_loss(params, reference, batch, keep):
    loss = functools.partial(dpo.loss, model=MODEL, options=OPTIONS, keep=keep)
    return jax.value_and_grad(loss, has_aux=True)(params, reference, batch)


def kept_loss(params, batch, keep):
    return _kept_loss(params, parameters(2), batch, keep)


def test_the_loss_is_that_of_the_pairs_plus_the_mean_of_the_judgments():
    trees, found = judgments(4), batches(loose_pairs())
    params, batch = parameters(1), only(mixed(found, trees))
    (total, (count, sums)), gradient = kept_loss(params, batch, 0.3)
    (plain, (plain_count, plain_sums)), plain_gradient = kept_loss(
        params, only(found), 0.3
    )
    assert count == plain_count == 5 and "replay_nll" not in plain_sums
    rows = forest.pack(trees, ROW, scored=ROW)
    own = functools.partial(sft.loss, model=MODEL)
    (nll, (weight, _)), nll_gradient = jax.value_and_grad(own, has_aux=True)(
        params, None, rows
    )
    assert weight == 4 * (4 + 2 * 3)
    mean = nll / weight
    np.testing.assert_allclose(sums["replay_nll"] / count, mean, rtol=1e-5)
    np.testing.assert_allclose(total / count, plain / 5 + 0.3 * mean, rtol=1e-5)
    expected = jax.tree.map(
        lambda a, b: a / 5 + 0.3 * b / weight, plain_gradient, nll_gradient
    )
    assert worst(jax.tree.map(lambda g: g / count, gradient), expected) < 1e-5


def test_parts_of_a_batch_add_up_to_the_whole():
    trees, pairs = judgments(6), loose_pairs()[:4]
    whole = mixed(batches(pairs, 4), trees, size=6)
    parts = mixed(batches(pairs, 4, micro_batches=2), trees, size=6)
    (total, (count, _)), gradient = kept_loss(parameters(1), only(whole), 2.0)
    sums = []
    for n in range(2):
        micro = jax.tree.map(lambda x, n=n: x[n], parts[0])
        sums.append(kept_loss(parameters(1), micro, 2.0))
    np.testing.assert_allclose(sum(s[0][0] for s in sums), total, rtol=1e-5)
    assert sum(s[0][1][0] for s in sums) == count == 4
    added = jax.tree.map(lambda *g: sum(g), *(s[1] for s in sums))
    assert worst(added, gradient) < 1e-5


def test_rows_are_drawn_in_passes_and_every_update_has_its_own():
    def order(seed, updates):
        return dpo.replay_order(5, 2, seed=seed, updates=updates).tolist()

    drawn = order(3, 6)
    flat = [place for own in drawn for place in own]
    assert [len(own) for own in drawn] == [2] * 6
    assert sorted(flat[:5]) == sorted(flat[5:10]) == [0, 1, 2, 3, 4]
    assert drawn == order(3, 6)
    assert drawn[:3] == order(3, 3)
    assert drawn != order(4, 6)


def test_all_updates_have_one_shape_and_weights_of_their_pairs():
    found = batches(loose_pairs(), 2)
    made = mixed(found, judgments(7), size=3)
    assert len({batch.replay.tokens.shape for batch in made}) == 1
    for batch, pairs in zip(made, (2, 2, 1), strict=True):
        assert batch.replay.weight.sum() == pytest.approx(pairs)
        assert batch.replay.weight.dtype == np.float32
    # The pairs stay as they were.
    for before, after in zip(found, made, strict=True):
        assert after._replace(replay=None).lengths is before.lengths


def test_a_judgment_is_read_when_its_batch_is_asked_for():
    found, held, reads = batches(loose_pairs(), 2), judgments(7), []

    def tree_of(row):
        reads.append(row.id)
        return held[int(row.id)]

    rows = [records.Question(str(number), "") for number in range(7)]
    trees = RowTrees(rows, tree_of, ROW, "eft")
    assert sorted(reads) == [row.id for row in rows]
    reads.clear()
    made = mixed(found, trees, size=3)
    assert reads == []
    drawn = dpo.replay_order(7, 3, seed=9, updates=len(found))
    for step, expected in enumerate(mixed(found, held, size=3)):
        for got, want in zip(
            *map(jax.tree.leaves, (made[step], expected)), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        assert reads == [str(place) for place in drawn[step]]
        reads.clear()


def test_a_change_of_its_weight_makes_later_models_again_and_no_search(tmp_path):
    from tiny_config import changed

    from stepjax.config import to_dict

    stages = redo.made(runs.finished_run())
    theirs, mine = (to_dict(changed(judge__keep=k)) for k in (0.0, 0.5))
    old, names = redo.stale(stages, theirs, mine)
    assert names == ["judge.keep"] and [str(s) for s in old][:2] == ["M2", "M2 search"]
    assert redo.measured_with(theirs, "search") == redo.measured_with(mine, "search")


def test_a_run_replays_judgments_in_every_update(tmp_path):
    with runs.quick_runs():
        run = runs.copy_run(tmp_path / "run", "M2", "M3", judge__keep=0.5)
        iterate.dpo(run, 1)
    made = files.read_json(run.dir.model(2) / "manifest.json")
    plain = files.read_json(runs.finished_run() / "M2" / "manifest.json")
    assert made["counts"] == plain["counts"] and made["arrays"] != plain["arrays"]
    rows = [r for r in Monitor(run.dir.path).rows() if r["stage"] == "dpo"]
    rows = [row for row in rows if "replay_nll" in row]
    assert [row["step"] for row in rows] == [5, 10, 12]
    for row in rows:
        expected = row["dpo_loss"] + 0.5 * row["replay_nll"]
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
