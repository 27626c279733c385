"""The map of a run's data: its texts, their vectors, and what the page says."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from runs import command, copy_run

from stepjax import records
from stepjax.lm import files
from stepjax.pairs import Pair
from stepjax.report import build, data_map, embeddings

VALUES = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
VALUES[12:] += 20


def test_places_are_the_same_each_time_and_near_what_is_alike():
    pytest.importorskip("sklearn")
    one, two = (data_map.tsne(VALUES, 3) for _ in range(2))
    assert one.shape == (24, 2) and (one == two).all()
    # The three nearest points of each point are of its own half.
    gaps = np.linalg.norm(one[:, None] - one[None], axis=-1)
    near = gaps.argsort(1)[:, 1:4]
    assert ((near >= 12) == (np.arange(24) >= 12)[:, None]).all()


def test_without_scikit_learn_the_page_says_what_it_lacks(tmp_path, monkeypatch):
    assert "stepjax report --map" in data_map.note(tmp_path)
    monkeypatch.setattr(data_map.importlib.util, "find_spec", lambda name: None)
    assert "scikit-learn is not installed" in data_map.note(tmp_path)
    assert data_map.charts(tmp_path) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from runs import quick_runs

    with quick_runs():
        yield copy_run(tmp_path_factory.mktemp("map") / "run", "report")


def test_texts_are_of_all_kinds_and_at_most_so_many(run, monkeypatch):
    monkeypatch.setattr(embeddings, "MOST", 20)
    rows = embeddings.texts(run, 2)
    kinds = [row.kind for row in rows]
    assert list(dict.fromkeys(kinds)) == ["IFT", "EFT", "pairs of M1", "pairs of M2"]
    assert max(map(kinds.count, kinds)) == kinds.count("IFT") == 20
    assert rows == embeddings.texts(run, 2)
    pairs = records.read_jsonl(run.dir.model(1) / "pairs.jsonl", Pair)
    known = {(tuple(p.context_ids), tuple(p.chosen_ids)) for p in pairs}
    made = [row[1:] for row in rows if row.kind == "pairs of M1"]
    assert made and {*made} <= known
    assert {row.kind for row in embeddings.texts(run, 1)} == {*kinds[:-1]} - {
        "pairs of M2"
    }


def test_vectors_are_means_of_the_states_that_predict_the_tokens(run):
    rows = embeddings.texts(run, 1)[::40]
    assert len({len(row.prompt) for row in rows}) > 1
    params = run.params(1)
    found = embeddings.vectors(run, params, rows)
    assert found.shape[:2] == (2, len(rows))
    for at, row in enumerate(rows):
        ids = np.array([row.prompt + row.response], np.int32)
        size = ids.shape[1]
        places = np.arange(size, dtype=np.int32)[None]
        ends = np.full((1, size), size, np.int32)
        states = run.model.apply({"params": params}, ids, places, ends)
        states = np.asarray(jnp.asarray(states, jnp.float32))[0]
        cut = len(row.prompt)
        for part, expected in enumerate((states[: cut - 1], states[cut - 1 : -1])):
            np.testing.assert_allclose(
                found[part, at], expected.mean(0), rtol=2e-4, atol=2e-5
            )


def test_a_map_is_kept_and_drawn(run, monkeypatch, capsys):
    monkeypatch.setattr(data_map, "tsne", lambda vectors, seed: vectors[:, :2])
    data_map.make(run, 2)
    path = run.dir.path / "report" / "map.json"
    made = files.read_json(path)
    assert made["model"] == "M2" and {*made["prompts"]} == {*made["responses"]}
    counted = [len(places) for places in made["prompts"].values()]
    assert sum(counted) == len(embeddings.texts(run, 2))
    before = path.read_bytes()
    monkeypatch.setattr(embeddings, "vectors", None)  # is not called again
    data_map.make(run, 2)
    assert path.read_bytes() == before
    assert "data map: done already by M2" in capsys.readouterr().err
    prompts, responses = data_map.charts(run.dir.path)
    assert prompts.title == "Map of the prompts, by M2"
    assert [name for name, _ in responses.plot.legend] == list(made["prompts"])
    page = build.write(run.dir.path).path.read_text("utf-8")
    assert "Map of the responses, by M2" in page and "report --map" not in page


def test_too_few_texts_are_refused(run, monkeypatch):
    monkeypatch.setattr(embeddings, "MOST", 1)
    with pytest.raises(ValueError, match="4 rows of data fit into train.row_length=88"):
        data_map.make(run, 2)


def test_the_command_leaves_the_map_out_without_scikit_learn(
    run, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    ignored = shutil.ignore_patterns("params", "tensorboard", "report")
    shutil.copytree(run.dir.path, folder, ignore=ignored)
    monkeypatch.setattr(data_map, "is_possible", lambda: False)
    assert command("report", f"--workdir={folder}", "--map") == 0
    said = capsys.readouterr().err
    assert "scikit-learn is not installed; the extra `report`" in said
    page = (folder / "report" / "index.html").read_text("utf-8")
    assert "scikit-learn is not installed" in page
