"""Word problems: ratings of whole solutions, and a run that learns to give them."""

import random

import pytest
import tiny_word_config

from stepjax import iterate, prompts, records, srlm
from stepjax.lm import files
from stepjax.prompts import Templates
from stepjax.worlds import word_problems as world
from stepjax.worlds import word_problems_srlm as ratings
from stepjax.worlds.equations import Equation

TWO = Equation("two", "Bob has 8 cups, gets 3, and 2 break.", "9", "- + 8 3 2")
RIGHT = (
    "Step 1: 8 + 3 = 11.",
    r"Step 2: 11 - 2 = 9. The answer is \boxed{9}.",
)


def rated(row, count=400, **options):
    rng = random.Random(0)
    made = [ratings.ratings("r", row, rng, **options) for _ in range(count)]
    return [one for rows in made for one in rows]


def test_the_score_is_the_number_of_right_steps():
    made = rated(TWO)
    assert len(made) == 400 and {row.score for row in made} == {0, 1, 2}
    for row in made:
        kinds = [world.mistake(TWO, row.steps[:n], s) for n, s in enumerate(row.steps)]
        assert row.score == kinds.count(None)
        wrong = len(kinds) - kinds.count(None) - kinds.count(world.CONTEXT)
        assert row.explanation.count("wrong. ") == wrong <= 1
        prompts.check_steps(Templates(), row.steps)
    right = [row for row in made if row.steps == RIGHT]
    assert abs(len(right) / len(made) - 0.6 * 0.6) < 0.1
    assert {row.score for row in right} == {2}
    # A lower score is a wrong answer, but where a swapped calculation keeps the result.
    wrong = [row for row in made if row.score < 2]
    kept = [row for row in wrong if ratings.is_right(TWO, row.steps[-1])]
    assert all("2 - 11 = 9" in row.steps[-1] for row in kept)


def test_a_solution_goes_on_with_its_wrong_result():
    made = {row.steps: row for row in rated(TWO)}
    row = made["Step 1: 8 + 3 = 12.", r"Step 2: 12 - 2 = 10. The answer is \boxed{10}."]
    assert row.score == 0 and row.explanation == (
        "The next calculation is 8 + 3 = 11. 1: 8 + 3 = 12, wrong. "
        "2: after a wrong step. "
    )
    goes_on = (RIGHT[0], "Step 2: 11 - 2 = 9.", r"Step 3: The answer is \boxed{9}.")
    row = made[goes_on]
    assert row.score == 2 and row.explanation.endswith(
        "2: 11 - 2 = 9, wrong. All calculations are done. 3: answers 9, right. "
    )
    early = [steps for steps in made if r"8 + 3 = 11. The answer is \boxed" in steps[0]]
    assert early and all(len(steps) == 1 for steps in early)
    for left in ("- 10/3 2", "/ 4 0"):  # no equation holds a fraction, or divides by 0
        assert ratings._carried_on(left, 2, Templates.step) == []


def test_what_has_no_operation_or_explanation():
    assert rated(Equation("one", "Ann has 5.", "5", "5"), 3) == []
    assert {row.explanation for row in rated(TWO, 9, style="none")} == {""}
    assert ratings.is_right(TWO, "\n".join(RIGHT))
    assert not ratings.is_right(TWO, RIGHT[0])
    srlm.check_texts(ratings.TEXTS)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_runs")
def test_a_run_of_srlm_on_word_problems(tmp_path):
    c = tiny_word_config.make(tmp_path)
    c.judge.kind, c.srlm.max_tokens = "ratings", 64
    c.data.make_eft, c.data.eft_count, c.sft.from_policy = False, 20, False
    c.search.on_tie, c.eval.search_count = "append", 2
    run = tmp_path / "run"
    iterate.run(c, run)
    for name, count in (("eft", 20), ("heldout", 6)):
        rows = records.read_jsonl(run / "data" / f"{name}.jsonl", srlm.Rating)
        assert len(rows) == count and len({row.score for row in rows}) > 1
    pairs = (run / "M1" / "pairs.jsonl").read_text("utf-8").splitlines()
    counts = files.read_json(run / "M2" / "manifest.json")["counts"]
    assert counts["pairs"] == len(pairs) > 0
    judged = files.read_json(run / "eval" / "M2_heldout_judge.json")["metrics"]
    assert judged["count"] == 6 and 0 <= judged["accuracy"] <= 1
