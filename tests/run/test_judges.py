"""Judges that are not the model which searches: M1, a PRM, a server."""

import contextlib
import types

import jax
import numpy as np
import pytest
import runs
from teacher_server import completion, serving
from test_lora_runs import settings, with_adapters
from tiny_config import changed

from stepjax import iterate
from stepjax.initial_data import prm
from stepjax.judge import Request, comparisons
from stepjax.lm import files, lora
from stepjax.run import checks, judge_rules, judges, ranges
from stepjax.run.run import Run
from stepjax.settings import from_config

pytestmark = pytest.mark.usefixtures("quick_runs")
ALONE = {"judge.score": "pointwise"}
STEPS = ("Step 1: 8*7+4=0", "Step 1: 8*7+4=5", "Step 1: 5*7+4=9")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge.model": "M1"}, ""),
        (
            {"judge.model": "M1", "judge.by": "random"},
            "judge.model='M1'; expected '' with judge.by='random'",
        ),
        ({"judge.model": "M2"}, "judge.model='M2'; expected one of ('', 'M1')"),
        (
            {"judge.model": "M1", "judge.by": "own_code:score"},
            "judge.model='M1'; expected '' with judge.by='own_code:score'",
        ),
        (
            {"judge.by": "prm"},
            "judge.by='prm'; expected another judge, or data.make_eft",
        ),
        ({"judge.by": "prm", "data.make_eft": True, "prm.labels_count": 9}, ""),
        ({"judge.by": "http"}, ""),
        (
            {"judge.by": "http", "judge.votes": 2},
            "judge.votes=2; expected 1 with judge.by",
        ),
        (
            {"judge.by": "http", "judge.mode": "logprob"},
            "judge.mode='logprob'; expected 'generate' with judge.by='http'",
        ),
        (
            {"judge.by": "http", "judge.value": "probability", "pairs.min_margin": 0},
            "judge.value='probability'; expected 'hard' with judge.by='http'",
        ),
        (
            {"judge.value": "probability"},
            "pairs.min_margin=1.0; expected below 1 with judge.value='probability'",
        ),
        ({"judge.votes": 3, "judge.mode": "logprob"}, "judge.votes=3; expected 1, or"),
        ({"judge.votes": 3, "judge.temperature": 0.0}, "judge.votes=3; expected 1, or"),
        ({"judge.tie": True}, "judge.tie=True; expected False with a data.world"),
        ({"search.on_reject": "resample"}, "expected 'append' unless judge.score="),
        (ALONE, ""),
        (ALONE | {"search.on_reject": "resample", "judge.by": "oracle"}, ""),
        (ALONE | {"judge.schedule": "swiss"}, "expected 'full' with judge.score="),
        (
            ALONE | {"pairs.min_margin": 2.0},
            "pairs.min_margin=2.0; expected at most 1, the largest difference",
        ),
    ],
)
def test_judges_that_make_no_sense_are_refused(changes, words):
    c = changed()
    c.update_from_flattened_dict(changes)
    found = [line for line in ranges.wrong(c) if "judge" in line or "margin" in line]
    assert len(found) == bool(words) and all(words in line for line in found)


def test_only_judges_outside_of_the_loop_are_foreign():
    names = ("self", "random", "oracle", "prm", "http", "own_code:score")
    assert [name for name in names if judge_rules.is_foreign(name)] == [*names[3:]]


def test_a_frozen_judge_is_m1_while_m2_searches(tmp_path, monkeypatch):
    run = runs.copy_run(
        tmp_path / "run", "M2/search*", "M2/pairs*", "M3", judge__model="M1"
    )
    given, make = {}, judges.open_sampler

    def opened(run, params, capacity, **options):
        given["judge"] = params
        return make(run, params, capacity, **options)

    monkeypatch.setattr(judges, "open_sampler", opened)
    iterate.search(run, 2)
    first, second = (run.sampling_params(number) for number in (1, 2))
    same = jax.tree.map(np.array_equal, given["judge"], first)
    assert all(jax.tree.leaves(same))
    other = jax.tree.map(np.array_equal, given["judge"], second)
    assert not all(jax.tree.leaves(other))
    inputs = files.read_json(run.dir.model(2) / "search.json")["inputs"]
    assert set(inputs) == {"M1", "M2", "questions_2"}
    assert inputs | run.dir.model_digest(1) == inputs


def test_a_frozen_judge_shares_the_base_of_adapters(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    runs.copy_files(with_adapters(), folder, "M2/search*", "M2/pairs*", "M3", "eval")
    run = Run(settings(judge__model="M1"), folder)
    given, make = {}, judges.open_sampler

    def opened(run, params, capacity, **options):
        given["judge"] = params
        return make(run, params, capacity, **options)

    monkeypatch.setattr(judges, "open_sampler", opened)
    iterate.search(run, 2)
    judge, solver = (lora.split(p)[1] for p in (given["judge"], run.params(2)))
    first = lora.split(run.params(1))[1]
    same = jax.tree.map(np.array_equal, judge, first)
    assert all(jax.tree.leaves(same))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, judge, solver)))
    inputs = files.read_json(run.dir.model(2) / "search.json")["inputs"]
    assert set(inputs) == {"M1", "M2", "questions_2"}


# A PRM.


def request(codec):
    steps = tuple(map(codec.step, STEPS))
    return Request(3, "q", "8*7+4*4+2*3+1", (), steps, (1, 1000, 1, 0))


def prm_judge(codec, monkeypatch, numbers, value):
    score = {"value": value, "by": "prm"}
    settings = from_config(changed(prm__prompt="Is it right?\n{problem}\n"))
    judge = types.SimpleNamespace(**score)
    settings = types.SimpleNamespace(
        search=settings.search, judge=judge, prm=settings.prm, seed=0
    )
    kind = types.SimpleNamespace(judgments=comparisons("sum", value))
    asked = []

    def make_scorer(sampler, codec, *, width, prompt):
        def score(solving, candidates):
            asked.append((solving, candidates, width, prompt))
            return {slot: np.array(numbers) for slot in candidates}

        return score

    monkeypatch.setattr(prm, "make_scorer", make_scorer)
    run = types.SimpleNamespace(codec=codec, settings=settings, kind=kind)
    return judges.prm_judge(run, None), asked


def test_the_higher_probability_of_the_prm_wins(codec, monkeypatch):
    judge, asked = prm_judge(codec, monkeypatch, [0.75, 0.5, 0.75], "hard")
    made = request(codec)
    (verdicts, none) = judge([made, made._replace(candidates=made.candidates[:1])])
    assert none == []
    assert [v[:3] for v in verdicts] == [
        (0, 1, "A"),
        (0, 2, None),
        (1, 0, "B"),
        (1, 2, "B"),
        (2, 0, None),
        (2, 1, "A"),
    ]
    assert verdicts[0].response == "A 0.75, B 0.5" and verdicts[0].probability is None
    ((solving, candidates, width, prompt),) = asked
    assert solving == {3: prm.Solving(made.problem, ())}
    assert candidates == {3: made.candidates}
    assert (width, prompt) == (3, "Is it right?\n{problem}\n")


def test_the_probability_of_a_prm_is_that_of_exactly_one_right_step(codec, monkeypatch):
    judge, _ = prm_judge(codec, monkeypatch, [0.8, 0.4, 1.0], "probability")
    (verdicts,) = judge([request(codec)], [[(0, 1), (1, 0), (0, 2)]])
    p = 0.8 * 0.6 / (0.8 * 0.6 + 0.4 * 0.2)
    assert [v.probability for v in verdicts] == pytest.approx([p, 1 - p, 0.0], abs=1e-6)
    assert [v.winner for v in verdicts] == ["A", "B", "B"]


def test_the_prm_of_a_run_judges_its_search(tmp_path):
    run = runs.copy_eft_run(
        tmp_path / "run",
        *("M1/search*", "M1/pairs*", "M2", "eval"),
        judge__by="prm",
        judge__value="probability",
        pairs__min_margin=0.0,
    )
    iterate.search(run, 1)
    inputs = files.read_json(run.dir.model(1) / "search.json")["inputs"]
    assert set(inputs) == {"M1", "prm", "questions_1"}
    verdicts = [v for pair in _pairs(run) for v in pair["verdicts"]]
    assert verdicts
    for _, _, winner, text, probability in verdicts:
        first, second = (float(part.split()[1]) for part in text.split(", "))
        assert 0 < first < 1 and 0 < second < 1
        if first != second:
            assert winner == ("A" if first > second else "B")
        if abs(first - second) > 1e-3:
            assert (probability > 0.5) == (first > second)


# A server.


def answer(prompt):
    """Prefers the candidate with the higher last digit."""
    a, b = (prompt.partition(name)[0].rstrip("\n")[-1] for name in ("(A)", "(B)"))
    return completion(f"{a} against {b}. [[{'A' if a >= b else 'B'}]]")


def http_run(folder, url, *without, **changes):
    settings = {"teacher__url": url, "teacher__model": "judge", "judge__by": "http"}
    settings |= {"teacher__retries": 0, "judge__temperature": 0.0} | changes
    return runs.copy_run(folder, "M1/search*", "M1/pairs*", "M2", "M3", **settings)


def test_a_server_judges_and_a_dead_one_loses_nothing(tmp_path):
    with serving() as server:
        server.answer = answer
        whole = http_run(tmp_path / "whole", server.url)
        iterate.search(whole, 1)
        asked = server.counts
        assert asked and max(asked.values()) == 1
        last = list(asked)[-1]
        verdicts = [v for pair in _pairs(whole) for v in pair["verdicts"]]
        assert verdicts
        for _, _, winner, text in verdicts:
            assert text == answer_of(text) and winner == text[-3]
        assert not list(whole.dir.model(1).glob("*partial*"))
    with serving() as server:
        server.answer = answer
        server.faults[last] = [(500, {}, b"out of memory")]
        broken = http_run(tmp_path / "broken", server.url)
        with pytest.raises(ValueError, match=r"status 500.*answers so far are kept in"):
            iterate.search(broken, 1)
        assert len(server.counts) < len(asked) or server.counts[last] == 1
        iterate.search(broken, 1)
        again = server.counts
    assert again - asked == {last: 1} and set(again) == set(asked)
    for name in ("search.jsonl", "pairs.jsonl"):
        first, second = (run.dir.model(1) / name for run in (whole, broken))
        assert first.read_bytes() == second.read_bytes()


def _pairs(run):
    from stepjax import records

    return [row for _, row in records.read_objects(run.dir.model(1) / "pairs.jsonl")]


def answer_of(text):
    a, b = text[0], text.partition("against ")[2][0]
    return f"{a} against {b}. [[{'A' if a >= b else 'B'}]]"


def test_a_server_without_an_address_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(ValueError, match="teacher.model is empty"):
        Run(changed(judge__by="http"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    checks.check_server(from_config(changed()))  # another judge needs none


def test_without_a_file_answers_are_kept_while_the_judge_is_open(tmp_path):
    with serving() as server, contextlib.ExitStack() as stack:
        server.answer = answer
        run = http_run(tmp_path / "run", server.url)
        judge = judges.http_judge(run, None, stack)
        made = request(run.codec)
        (first,) = judge([made])
        assert judge([made]) == [first] and len(first) == 6
        assert [v.winner for v in first][:2] == ["B", "B"]
        assert max(server.counts.values()) == 1
