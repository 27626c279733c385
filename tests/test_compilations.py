"""A whole search compiles each program once per bucket of lengths, and no more."""

import collections

import jax
import pytest
from runs import copy_run
from tiny_config import changed

from stepjax import settings
from stepjax.lm import generate
from stepjax.records import Question
from stepjax.run import rollout
from stepjax.worlds import arithmetic

PROGRAMS = ("extend", "append", "sample")
PROBLEMS = 64


@pytest.fixture(scope="module")
def run(quick_runs, tmp_path_factory):
    return copy_run(tmp_path_factory.mktemp("search") / "run")


@pytest.fixture
def buckets(monkeypatch):
    """Program → the buckets of lengths it was called with."""
    seen = collections.defaultdict(set)

    def watch(name):
        real = getattr(generate, name)

        def watched(*args, **options):
            if name == "extend":
                seen[name].add((args[3].tokens.shape, options["bucket"]))
            elif name == "sample":
                shared = args[2].leads, args[3].prompts
                shapes = tuple(x.shape for x in jax.tree.leaves(shared))
                seen[name].add((*shapes, options["bucket"], options["capacity"]))
            else:
                seen[name].add(())
            return real(*args, **options)

        watched._cache_size = real._cache_size
        monkeypatch.setattr(generate, name, watched)

    for name in PROGRAMS:
        watch(name)
    return seen


def compiled():
    return {name: getattr(generate, name)._cache_size() for name in PROGRAMS}


def test_a_search_compiles_once_per_bucket_and_new_settings_compile_nothing(
    run, buckets, monkeypatch
):
    texts = arithmetic.problems(PROBLEMS, operations=2, seed=9)
    questions = [Question(f"new-{i}", text) for i, text in enumerate(texts)]
    params = run.sampling_params(1)

    def search(**changes):
        # Six rows are all judgments of a step: they share leads.
        c = changed(judge__rows=6, **changes)
        monkeypatch.setattr(run, "settings", settings.from_config(c))
        return list(rollout.search_questions(run, params, questions, 1))

    jax.clear_caches()  # of the run that made the model
    before = compiled()
    states = search()
    new = {name: count - before[name] for name, count in compiled().items()}
    assert len(states) == PROBLEMS
    assert sum(len(s.expansions) for s in states) > 2 * PROBLEMS
    for name in PROGRAMS:
        assert 1 <= new[name] <= len(buckets[name]), name
    # The two caches, and a few buckets of prompts.
    assert new["append"] <= 2 and new["sample"] <= 5 and new["extend"] <= 8

    before, paths = compiled(), len(buckets["sample"])
    other = search(
        search__temperature=0.7,
        search__top_p=0.8,
        search__max_expansions=5,
        judge__temperature=0.5,
    )
    assert [s.expansions for s in other] != [s.expansions for s in states]
    met = len(buckets["sample"]) - paths  # buckets that the first one did not meet
    assert compiled()["sample"] - before["sample"] <= met
    assert compiled()["append"] == before["append"]
