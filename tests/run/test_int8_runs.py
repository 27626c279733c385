"""A run that samples with `search.weights="int8"`, and what it says of that."""

import jax
import numpy as np
import pytest
from runs import assert_same_results, copy_files, finished_run, kill
from tiny_config import changed

from stepjax import iterate
from stepjax.evaluation import stages
from stepjax.lm import files
from stepjax.run import judges, ranges, reference_pass
from stepjax.run.journal import Journal
from stepjax.run.run import Run
from stepjax.run.rundir import RunDirectory

pytestmark = pytest.mark.usefixtures("quick_runs")
AFTER_M1 = ("M*/search*", "M*/pairs*", "M2", "M3", "eval", "metrics.jsonl", "log.txt")
INT8 = {"search__weights": "int8"}


def from_m1(folder):
    copy_files(finished_run(), folder, *AFTER_M1)
    return folder


@pytest.fixture(scope="module")
def sampled_with_int8(tmp_path_factory):
    """A finished run, and the types of "query" with which it sampled and referred."""
    folder = from_m1(tmp_path_factory.mktemp("int8") / "run")
    with (
        kill(judges, "Sampler", None) as samplers,
        kill(reference_pass, "fill", None) as references,
    ):
        iterate.run(changed(**INT8), folder)
    return folder, samplers, references


def test_a_run_samples_with_int8_and_its_record_says_so(sampled_with_int8):
    folder, samplers, references = sampled_with_int8
    assert len(samplers) > 10 and len(references) == 2
    for _, params, *_ in samplers:
        assert params["layers"]["query"].dtype == np.int8
        assert params["embedding"].dtype == np.float32
    for _, params, *_ in references:  # what training starts from
        assert params["layers"]["query"].dtype == np.float32
    assert files.read_json(folder / "config.json")["search"]["weights"] == "int8"
    for mode in ("test_greedy", "test_search", "heldout_judge"):
        found = files.read_json(folder / f"eval/M2_{mode}.json")
        assert found["settings"]["search.weights"] == "int8"
    full, small = (
        (one / "M1/search.jsonl").read_text() for one in (finished_run(), folder)
    )
    assert full != small and full.count("\n") == small.count("\n") > 20


@pytest.mark.slow
def test_a_killed_search_ends_as_the_unbroken_one(sampled_with_int8, tmp_path):
    folder = from_m1(tmp_path / "killed")
    for stage in (1, 2):

        def in_the_search(count, args, name=f"M{stage}"):
            return args[0].path.parent.name == name and "search" in args[0].path.name

        with kill(Journal, "add", in_the_search), pytest.raises(KeyboardInterrupt):
            iterate.run(changed(**INT8), folder)
    iterate.run(changed(**INT8), folder)
    assert_same_results(sampled_with_int8[0], folder)


def test_full_weights_are_the_compute_type_and_nothing_beside(tmp_path):
    run = Run(changed(), from_m1(tmp_path / "run"))
    params = run.params(1)
    sampling = run.sampling_params(1)
    assert jax.tree.structure(params) == jax.tree.structure(sampling)
    for a, b in zip(*map(jax.tree.leaves, (params, sampling)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_weights_are_another_search_and_another_measurement(tmp_path):
    folder = tmp_path / "run"
    copy_files(finished_run(), folder)
    with pytest.raises(ValueError, match="search.weights was 'full', now 'int8'"):
        RunDirectory(changed(**INT8), folder)
    run = Run(changed(**INT8), folder, keep=True, locks=False)
    before = set(folder.glob("eval/M2_*"))
    stages.evaluate(run, 2, ("greedy", "judge"))
    made = {path.name for path in set(folder.glob("eval/M2_*")) - before}
    assert len(made) == 2 and all("-" in name for name in made)


def test_an_unknown_kind_of_weights_is_refused():
    (line,) = ranges.wrong(changed(search__weights="int4"))
    assert "search.weights='int4'; expected one of ('full', 'int8')" in line
