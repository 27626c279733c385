"""A search that finds nothing of use is stopped, once and with the reason."""

import types

import pytest

from stepjax import config
from stepjax.records import Question
from stepjax.run import rollout
from stepjax.run.journal import Journal
from stepjax.run.monitor import Monitor
from stepjax.settings import from_config
from stepjax.trajectory import Candidate, Expansion, Refused, State

QUESTIONS = [Question(f"q{n}", f"{n} + 1") for n in range(40)]
GOOD = Candidate((1,), "Step 1: 2", 1, -1.0, True)
CUT = (Refused("cut off", 6, "Step 1: hmm"),)


def closed(question, candidates=(), refused=CUT):
    expansion = Expansion(
        *(1, 0, candidates, 6, (), (), None, None, "resample", (0, 0, 1, 0)), refused
    )
    return State(question, (), (), (expansion,), "budget")


def search(tmp_path, monkeypatch, state_of, kept=0):
    """Returns how many problems are closed by a search that may be stopped."""
    run = types.SimpleNamespace(
        slots=8,
        monitor=Monitor(tmp_path, quiet=True),
        settings=from_config(config.default()),
    )
    journal = Journal(tmp_path / "search.partial.jsonl", {})
    journal.add([state_of(question) for question in QUESTIONS[:kept]], {})
    done = []

    def search_questions(run, params, todo, *arguments, **options):
        for question in todo:
            done.append(question.id)
            yield state_of(question)

    monkeypatch.setattr(rollout, "search_questions", search_questions)
    try:
        rollout.search_from_journal(
            run,
            QUESTIONS,
            journal,
            lambda: None,
            name="M1 search",
            iteration=1,
            note=rollout.Preferences(run, "M1 search"),
        )
    except ValueError as error:
        assert len(done) + kept < len(QUESTIONS)
        return len(done), str(error)
    return len(done), ""


@pytest.mark.parametrize("kept", [0, 20])
def test_a_search_without_candidates_stops_after_32_problems(
    tmp_path, monkeypatch, kept
):
    done, said = search(tmp_path, monkeypatch, closed, kept)
    assert done + kept == 32
    assert said.startswith("M1 search is stopped, because it would only take time: ")
    assert "search.max_step_tokens=256. Raise search.max_step_tokens." in said
    assert "'Step 1: hmm'" in said and "\n" not in said


def test_one_candidate_is_enough_to_go_on(tmp_path, monkeypatch):
    def state_of(question):
        return closed(question, (GOOD,) if question.id == "q31" else ())

    assert search(tmp_path, monkeypatch, state_of) == (40, "")


def test_problems_without_room_for_a_step_do_not_count(tmp_path, monkeypatch):
    def state_of(question):
        if question.id in ("q0", "q1"):
            return State(question, status="length")
        return closed(question)

    assert search(tmp_path, monkeypatch, state_of)[0] == 34
