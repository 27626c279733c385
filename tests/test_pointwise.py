"""Judging each next step alone, and sampling a step again that is called wrong."""

import pytest
import runs
from fakes import FakeSampler, candidate, proposal, verdicts_of

from stepjax import controls, iterate, pointwise, records, trajectory
from stepjax.evaluation import show
from stepjax.judge import Request
from stepjax.lm import files
from stepjax.records import Comparison, Question
from stepjax.search import step_search, transition
from stepjax.self_judge import make_judge
from stepjax.trajectory import State, Verdict
from stepjax.worlds import arithmetic, arithmetic_data

PROBLEM = "8*7+4*4+2*3+1"
STEPS = ("Step 1: 8*7+4=0", "Step 1: 8*7+4=5", "Step 1: 5*7+4=9")


def judgments(value="hard"):
    return pointwise.appraisals(arithmetic.SINGLE, value, arithmetic_data.appraise)


def test_an_eft_row_teaches_to_judge_its_first_step(codec):
    for row in arithmetic_data.comparison_from("r", PROBLEM, (), *STEPS[:2]):
        prompt, response, verdict = judgments().example(codec, row)
        assert codec.tokenizer.decode(prompt) == f"{PROBLEM}\n{row.a}\n(?)\n"
        right = row.a == STEPS[0]
        assert verdict == ("[[A]]" if right else "[[B]]")
        mark = "(+)" if right else "(-)"
        said = f"Check: 8*7=6, 8*7+4=0, {row.a.removeprefix('Step 1: ')} {mark} "
        assert codec.text(response) == said + verdict
        assert response[-1] == codec.tokenizer.eos_id
        # Two wrong steps, of which a comparison prefers the first: both are wrong here.
    for row in arithmetic_data.comparison_from("r", PROBLEM, (), *STEPS[1:]):
        assert row.verdict == "A"
        assert judgments().example(codec, row)[2] == "[[B]]"


def test_a_held_out_row_is_asked_as_it_is_learned(codec):
    kept = ("Step 1: 8*7+4=0",)
    row = Comparison("r", PROBLEM, kept, "Step 2: 0*4+2=3", "Step 2: 0*4+2=2", "B")
    steps, candidates, gold = judgments().held_out(codec, row)
    assert gold == "B" and candidates == (codec.step(row.a),)
    asked = Request(0, "r", PROBLEM, steps, candidates, (0, 0, 2, 0))
    made = judgments()
    prompt = made.context(codec, PROBLEM, steps) + made.question(codec, asked, (0, 0))
    assert prompt == made.example(codec, row)[0]


def test_a_row_of_a_file_is_judged_by_its_verdict_without_its_explanation(codec):
    row = Comparison("r", PROBLEM, (), *STEPS[:2], "A", "A is right, B is not. ")
    made = pointwise.appraisals()
    prompt, response, verdict = made.example(codec, row)
    assert (codec.text(response), verdict) == ("[[A]]", "[[A]]")
    text = pointwise.prompt_text(pointwise.SINGLE, PROBLEM, STEPS[:1], STEPS[1])
    assert f"[Start of steps so far]\n{STEPS[0]}\n[End of steps so far]" in text
    assert f"[Start of candidate]\n{STEPS[1]}\n[End of candidate]" in text
    context = made.context(codec, PROBLEM, [codec.step(STEPS[0])])
    asked = Request(0, "r", PROBLEM, (), (codec.step(STEPS[1]),), (0, 0, 2, 0))
    ids = context + made.question(codec, asked, (0, 0))
    assert codec.tokenizer.decode(ids) == codec.tokenizer.decode(
        codec.tokenizer.encode_prompt(text)
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{problem}\n{steps}\n", r"'single' has \{step\} 0 times"),
        ("{problem}\n{step}\n{steps}\n", "'single' has its placeholders out of order"),
        ("{steps}\n{step}\n", r"'single' has no \{problem\}"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template, words):
    with pytest.raises(ValueError, match=words):
        pointwise.appraisals(template)


def test_scores_are_verdicts_of_one_call_each():
    made = judgments()
    assert made.calls(4, ()) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert made.scores(3, verdicts_of("00A 11B 22-")) == [1.0, 0.0, None]
    # Three explanations: two accept.
    assert made.scores(1, verdicts_of("00A 00B 00A")) == [0.666667]
    soft = [Verdict(0, 0, "A", "", 0.75), Verdict(0, 0, "B", "", 0.25)]
    assert judgments("probability").scores(1, soft) == [0.5]
    graded = made.graded(verdicts_of("00A 11B 22- 33A"), [True, True, True, False])
    assert graded == [True, False, False, False]


def test_the_model_is_asked_once_per_candidate(codec):
    def respond(context, prompt, path):
        assert prompt.endswith("\n(?)\n")
        return f"Check: [[{'A' if prompt[14] == '0' else 'B'}]]"

    sampler = FakeSampler(codec, 2, respond)
    options = {"max_tokens": 40, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    judge = make_judge(sampler, codec, judgments(), mode="generate", rows=2, **options)
    ids = tuple(map(codec.step, STEPS))
    (verdicts,) = judge([Request(1, "q", PROBLEM, (), ids, (1, 7, 1, 0))])
    assert [v[:3] for v in verdicts] == [(0, 0, "A"), (1, 1, "B"), (2, 2, "B")]
    assert [row.path[4:] for row in sampler.asked] == [(0, 0, 1), (1, 1, 1), (2, 2, 1)]


def test_coins_and_gold_judge_steps_alone(codec):
    ids = tuple(map(codec.step, STEPS))
    made = Request(1, "q", PROBLEM, (), ids, (1, 7, 1, 0))
    oracle = controls.oracle_judge(arithmetic.is_right, codec, judgments(), 0)
    (verdicts,) = oracle([made])
    assert [v[:3] for v in verdicts] == [(0, 0, "A"), (1, 1, "B"), (2, 2, "B")]
    coins = controls.random_judge(judgments(), 0)
    asked = [made._replace(path=(1, 7, 1, n)) for n in range(200)]
    sides = [v.winner for answers in coins(asked) for v in answers]
    assert len(sides) == 600 and 200 < sides.count("A") < 400


# Sampling again.


def test_a_step_that_is_called_wrong_is_sampled_again():
    state = State(Question("q", "p"))
    scores = judgments().scores
    both = [Verdict(0, 0, "B"), Verdict(1, 1, "B")]
    how = {"scores": scores, "max_expansions": 3}
    rejected = transition(state, proposal("a", "b"), both, on_reject="resample", **how)
    assert rejected.steps == () and rejected.status == "running"
    (expansion,) = rejected.expansions
    assert (expansion.action, expansion.best, expansion.worst) == ("reject", None, None)
    assert rejected.key_path(1)[2:] == (1, 1)  # step 1, the second attempt
    # Without it they tie, and the search goes on as after any tie.
    assert transition(state, proposal("a", "b"), both, **how).expansions[0].action == (
        "resample"
    )
    one = [Verdict(0, 0, "A"), Verdict(1, 1, "B")]
    kept = transition(rejected, proposal("a", "b"), one, on_reject="resample", **how)
    assert [step.text for step in kept.steps] == ["a"] and kept.pair_from == (1,)
    # An unread verdict is no rejection.
    unread = [Verdict(0, 0, None), Verdict(1, 1, None)]
    after = transition(state, proposal("a", "b"), unread, on_reject="resample", **how)
    assert after.expansions[0].action == "resample"
    with pytest.raises(ValueError, match="on_reject='skip'"):
        transition(state, proposal("a"), [], on_reject="skip")


def test_rejections_count_towards_the_budget_and_are_shown():
    def propose(active):
        return {slot: proposal("a", "b") for slot in active}

    def judge(requests):
        return [[Verdict(0, 0, "B"), Verdict(1, 1, "B")] for _ in requests]

    (state,) = step_search(
        [Question("q", "p")],
        propose,
        judge,
        slots=1,
        scores=judgments().scores,
        on_tie="append",
        on_reject="resample",
        max_expansions=4,
    )
    assert state.status == "budget" and state.steps == ()
    assert [e.action for e in state.expansions] == ["reject"] * 4
    assert trajectory.from_row(trajectory.to_row(state)) == state
    text = show.of_state(state)
    assert "the judge calls the best one wrong; the step is sampled again" in text
    assert "1: wrong" in text


def test_rejections_are_counted_apart_from_ties():
    from stepjax.pairs import summary

    state = State(Question("q", "p"))
    both = [Verdict(0, 0, "B"), Verdict(1, 1, "B")]
    scores = judgments().scores
    made = proposal("a", "b")
    state = transition(state, made, both, scores=scores, on_reject="resample")
    state = transition(state, made, both, scores=scores, on_tie="append")
    assert summary([state])["reject_rate"] == summary([state])["tie_rate"] == 0.5
    assert candidate("a") == made.candidates[0]


# A run.


def test_a_run_learns_to_judge_steps_alone(tmp_path):
    with runs.quick_runs():
        run = runs.copy_run(
            tmp_path / "run",
            *("M1", "M2", "M3", "eval"),
            judge__score="pointwise",
            judge__votes=2,
            pairs__min_margin=0.0,
        )
        iterate.sft(run)
        iterate.search(run, 1)
    rows = records.read_objects(run.dir.model(1) / "search.jsonl")
    states = [trajectory.from_row(row) for _, row in rows]
    verdicts = [v for s in states for e in s.expansions for v in e.verdicts]
    assert verdicts and all(v.a == v.b for v in verdicts)
    assert sum(v.winner is not None for v in verdicts) > len(verdicts) / 2
    counts = files.read_json(run.dir.model(1) / "search.json")["counts"]
    candidates = sum(len(e.candidates) for s in states for e in s.expansions)
    assert counts["judgments"] == 2 * candidates
