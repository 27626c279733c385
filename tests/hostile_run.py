"""A hand-made run whose problems and steps hold HTML that must stay text."""

import pathlib

from stepjax import config, records, trajectory
from stepjax.lm import files
from stepjax.records import Question
from stepjax.trajectory import Candidate, Expansion, Refused, State, Verdict

SCRIPT = "<script>window.broken = 1</script>"
IMAGE = "</script><img src=x onerror='window.broken = 2'>"


def candidate(text, count=1, tokens=2, finished=False):
    return Candidate(tuple(range(tokens)), text, count, -1.5, finished)


def calls(table):
    return tuple(
        Verdict(int(a), int(b), None if w == "-" else w, f"shown as {a}{b} {IMAGE}")
        for a, b, w in table.split()
    )


def expansion(step, candidates, table, action, **changed):
    """An expansion whose first candidate is best and whose last one is worst."""
    made = {
        **{"step": step, "attempt": 0, "candidates": candidates, "malformed": 0},
        **{"verdicts": calls(table), "scores": (0,) * len(candidates), "best": 0},
        **{"worst": len(candidates) - 1 if action == "pair" else None},
        **{"action": action, "path": (0,)},
    }
    return Expansion(**made | changed)


def state(name, problem, *expansions, status="complete"):
    """A search; what it kept follows from its expansions."""
    kept = []
    for made in expansions:
        if made.action in ("pair", "append"):
            kept.append(made.candidates[made.best])
        elif made.action == "back":
            kept.pop()
    pairs = (None,) * len(kept)
    return State(Question(name, problem), tuple(kept), pairs, expansions, status)


PAIR = expansion(
    *(1, (candidate(f"0 {IMAGE}", 3), candidate("x", 1, 5), candidate("y"))),
    *("01A 10B 02A 20B 12A 21-", "pair"),
    scores=(4, 1, None),
)
FLIP = expansion(2, (candidate("1"), candidate("z", 1, 4)), "01A 10A", "append")
BACK = expansion(
    2, (candidate("p"), candidate("q")), "01B 10B", "back", best=None, attempt=0
)
ALONE = expansion(1, (candidate("0", 4),), "", "append")
REFUSED = expansion(
    *(1, (), "", "resample"), best=None, refused=(Refused("cut off", 4, SCRIPT),)
)
STATES = (
    state("hostile", f"Add {SCRIPT} to {IMAGE}", PAIR, FLIP),
    state("dropped", "count", ALONE, BACK, PAIR),
    state("refused", "count", REFUSED, status="budget"),
    state("plain", "count again", ALONE, expansion(2, (candidate("9"),), "", "append")),
)


SOLVED = (("greedy-1", 0.25, 16), ("dvts-2", 0.5, 56), ("dvts-10", 0.75, 248))


def is_right(problem, steps, step):
    """A step is right when it begins with the number of steps before it."""
    return step.startswith(str(len(steps)))


def make(folder: pathlib.Path, extra: int = 0) -> pathlib.Path:
    """Writes the run: M0 and M1 measured, M1 has searched; more plain searches."""
    more = [state(f"more-{n}", f"problem {n}", ALONE) for n in range(extra)]
    rows = [trajectory.to_row(s) for s in (*STATES, *more)]
    (folder / "M1").mkdir(parents=True)
    records.write_jsonl(folder / "M1" / "search.jsonl", rows)
    stage = {"files": {}, "inputs": {}, "seconds": 2.5, "seed": 7, "counts": {}}
    stage |= {"versions": {"stepjax": "0.1.0"}, "warnings": [f"first: {IMAGE}"]}
    files.write_json(folder / "M1" / "search.json", stage)
    files.write_json(folder / "M1" / "manifest.json", stage | {"arrays": {}})
    files.write_json(folder / "config.json", config.to_dict(config.default()))
    graded = [
        {"id": s.question.id, "right": n == 0, "prediction": None, "answer": "5"}
        | {"tokens": 10 + n, "text": SCRIPT, "steps": 2, "problem": s.question.problem}
        for n, s in enumerate(STATES)
    ]
    accuracy = {"accuracy": 0.25, "low": 0.05, "high": 0.7, "count": 4}
    accuracy |= {"steps_per_solution": 2.0, "tokens_per_step": 6.0}
    for number, share in ((0, 0.0), (1, 0.25)):
        metrics = accuracy | {"accuracy": share}
        items = [item | {"right": item["right"] and share > 0} for item in graded]
        result = stage | {"warnings": [], "metrics": metrics, "items": items}
        files.write_json(folder / "eval" / f"M{number}_test_greedy.json", result)
        name = f"M{number}_GSM8K_test-0a1b2c3d_greedy.json"
        files.write_json(folder / "eval" / name, result)
    for choice, right, tokens in SOLVED:
        metrics = {"accuracy": right, "low": right / 2, "high": (1 + right) / 2}
        metrics |= {"solver_tokens": tokens, "judge_tokens": 8.0, "read_tokens": 9.0}
        metrics |= {"tokens": tokens + 8, "count": 4}
        for name in ("test", "<b>$x$-0a1b2c3d"):
            target = folder / "eval" / f"M1_{name}_solve-{choice}.json"
            files.write_json(target, stage | {"metrics": metrics})
    rates = {"tie_rate": 0.5, "flip_rate": 0.25, "unparsed_rate": 0.0}
    searched = result | {"metrics": accuracy | rates}
    files.write_json(folder / "eval" / "M1_test_search.json", searched)
    records.write_jsonl(folder / "eval" / "M1_test_search.jsonl", rows[:4])
    return folder
