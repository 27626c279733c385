"""Rows of every kind and format, right ones and ones that are wrong on purpose."""

import gzip
import json
import math
import random

from fuzz import Case

from stepjax import srlm
from stepjax.initial_data.formats import sources
from stepjax.prompts import Templates
from stepjax.run import kind

TEMPLATES = Templates()
_RATED = kind.rows_of(srlm.Rating)
BLANK = ("", " ", "\n\t", "\u200b", "\ufeff", "\u2028")
NO_TEXT = (None, 5.5, [], {}, True, ["a"], math.nan)


def _own(draw):
    """(what is read, a right row in our own format)."""
    n = draw.randrange(2, 99)
    problem = f"{n} + {n}?"
    steps = [f"Step 1: {n} + {n} = {2 * n}", f"Step 2: \\boxed{{{2 * n}}}"]
    pair = {"problem": problem, "steps": steps[:1]}
    return draw.choice(
        [
            ("question", {"problem": problem}),
            ("problem", {"problem": problem, "answer": str(2 * n)}),
            ("solution", {"problem": problem, "steps": steps, "answer": str(2 * n)}),
            (
                "comparison",
                pair | {"a": "Step 2: right", "b": "Step 2: wrong", "verdict": "A"},
            ),
            ("preference", pair | {"chosen": "Step 2: a", "rejected": "Step 2: b"}),
            ("labels", {"problem": problem, "steps": steps, "labels": [1, 0.5]}),
            ("rating", {"problem": problem, "steps": steps, "score": 3}),
        ]
    )


def _foreign(draw):
    """(format, what is read, a right row) of somebody else's data set."""
    n = draw.randrange(2, 99)
    asked, boxed = f"{n} and {n}?", f"It is $\\boxed{{{n}}}$."
    shepherd = f"{asked} Step 1: a \u043a\u0438\nStep 2: b \u043a\u0438"
    labelled = f"{asked} Step 1: a +\nStep 2: b -"
    return draw.choice(
        [
            ("gsm8k", "solution", {"question": asked, "answer": f"So {n}.\n#### {n}"}),
            ("gsm8k", "problem", {"question": asked, "answer": f"So {n}.\n#### {n}"}),
            ("math", "worked", {"problem": asked, "solution": boxed}),
            ("numina", "problem", {"problem": asked, "solution": boxed}),
            ("benchmark", "problem", {"problem": asked, "answer": n}),
            ("trl", "preference", {"prompt": asked, "chosen": "a", "rejected": "b"}),
            ("math_shepherd", "labels", {"input": shepherd, "label": labelled}),
            (
                "processbench",
                "labels",
                {"problem": asked, "steps": ["a", "b"], "label": 1},
            ),
            (
                "stepwise",
                "labels",
                {"prompt": asked, "completions": ["a", "b"], "labels": [True, False]},
            ),
            (
                "step_dpo",
                "preference",
                {
                    "prompt": asked,
                    "initial_reason_steps": "",
                    "chosen": "Step 1: a",
                    "rejected": "Step 1: b",
                },
            ),
        ]
    )


def _spoiled(draw, to, row):
    """(what was done, fields) that make a right row of our own format wrong."""
    steps = row.get("steps", [])
    ways = [
        ("problem blank", {"problem": draw.choice(BLANK)}),
        ("problem no text", {"problem": draw.choice(NO_TEXT)}),
        ("NUL", {"problem": row["problem"] + "\0"}),
        ("id blank", {"id": draw.choice(BLANK)}),
        ("id no text", {"id": draw.choice(([], {}, True, math.inf))}),
        ("surrogate", {"problem": "\ud800" + row["problem"]}),
    ]
    if steps:
        ways += [
            ("step no text", {"steps": [*steps, draw.choice((None, 5, []))]}),
            ("step blank", {"steps": [draw.choice(BLANK[:3]), *steps[1:]]}),
            ("steps no list", {"steps": draw.choice(("Step 1: a", 7, {}, None))}),
            ("marker of another step", {"steps": ["Step 7: a", *steps[1:]]}),
            ("nothing after the marker", {"steps": ["Step 1:  ", *steps[1:]]}),
            ("NUL in a step", {"steps": ["Step 1: a\0", *steps[1:]]}),
        ]
    if to == "solution":
        ways += [
            ("no steps", {"steps": []}),
            ("no answer", {"steps": steps[:1], "answer": draw.choice(BLANK[:3])}),
            ("another answer", {"answer": str(int(row["answer"]) + 1)}),
            ("box too early", {"steps": ["Step 1: \\boxed{1}", *steps[1:]]}),
            ("empty box", {"steps": [steps[0], "Step 2: \\boxed{ }"], "answer": ""}),
        ]
    if to in ("comparison", "preference"):
        a, b = ("a", "b") if to == "comparison" else ("chosen", "rejected")
        name = draw.choice((a, b))
        ways += [
            ("one step twice", {a: row[b]}),
            ("one step twice but for blanks", {a: f" {row[b]}  "}),
            ("candidate blank", {name: draw.choice(BLANK[:3])}),
            ("candidate with the marker alone", {name: "Step 2: "}),
            ("candidate of another step", {name: "Step 7: z"}),
            ("verdict in a candidate", {name: f"Step 2: [[{draw.choice('AB')}]] a"}),
            ("verdict in a step", {"steps": ["Step 1: [[A]]"]}),
            ("candidate no text", {name: draw.choice((None, 5, ["x"]))}),
            ("finished before", {"steps": ["Step 1: \\boxed{4}"]}),
        ]
    if to == "comparison":
        bad = draw.choice(("C", "", "a", "AB", None, 1, ["A"]))
        ways += [
            ("no verdict", {"verdict": bad}),
            ("verdict in the explanation", {"explanation": "so [[B]] it is"}),
            ("verdict in the problem", {"problem": "say [[A]]"}),
        ]
    if to == "labels":
        bad = draw.choice(
            ([1], [], [None, None], [1, 2], [1, "0"], "10", [1, math.nan])
        )
        ways += [("labels", {"labels": bad})]
    if to == "rating":
        bad = draw.choice((10, -1, 3.5, "3", True, None, [3]))
        ways += [("score", {"score": bad}), ("no steps", {"steps": []})]
    return draw.choice(ways)


def _text(draw, rows):
    """Rows as JSON lines, written in one of many right ways."""
    lines = [json.dumps(r, ensure_ascii=draw.random() < 0.5) for r in rows]
    end = draw.choice(("\n", "\n", "\r\n", "\n\n"))
    return "".join(line + end for line in lines)


def _broken(draw, good):
    """(what was done, bytes) of a file that cannot be read to its end."""
    line = good[: good.index(b"\n")]
    deep = draw.choice((b"[", b'{"a":', b'{"problem":["'))
    return draw.choice(
        [
            ("empty file", b""),
            ("blank lines", b"\n \n"),
            ("cut off", good + line[: draw.randrange(1, len(line) - 1)]),
            ("deep nesting", good + deep * 60_000 + b"\n"),
            ("not UTF-8", good + b'{"problem": "\xff\xfe"}\n'),
            (
                "UTF-16",
                good.decode("utf-8", "surrogatepass").encode("utf-16", "replace"),
            ),
            ("no object", good + draw.choice((b"5", b'"a"', b"null", b"[1]")) + b"\n"),
            ("a name twice", good + line[:-1] + b', "problem": "x"}\n'),
            ("a number too long", good + b'{"id": ' + b"9" * 5000 + b"}\n"),
            ("the same ids", good + good),
            ("NUL bytes", good + b"\0" * 50 + b"\n"),
            ("packed, but not so named", gzip.compress(good)),
        ]
    )


def case(seed, folder):
    """One file of rows; `folder` is new."""
    draw = random.Random(seed)
    path = folder / "rows.jsonl"
    if draw.random() < 0.2:
        return _of_somebody(draw, path)
    to, row = _own(draw)
    strict = draw.random() < 0.3
    rows = [row | {"id": f"r{n}"} for n in range(draw.randrange(1, 4))]
    whole = _text(draw, rows).encode("utf-8", "surrogatepass")
    named: tuple[str, ...] = (str(path),)
    chance, what, wrong = draw.random(), "nothing", False
    if chance < 0.2:
        what, whole = _broken(draw, whole)
        wrong = True
    elif chance < 0.75:
        what, changes = _spoiled(draw, to, row)
        at = draw.randrange(len(rows) + 1)
        rows.insert(at, row | {"id": "bad"} | changes)
        whole = _text(draw, rows).encode("utf-8", "surrogatepass")
        wrong = True
        readable = what != "surrogate" and "NaN" not in json.dumps(changes)
        if "id" not in changes and readable:
            named = (*named, "bad")
    path.write_bytes(whole)

    def attempt():
        if to == "rating":
            return _RATED(str(path), TEMPLATES)
        return sources.read(path, "jsonl", to, TEMPLATES, strict=strict)

    label = f"{'strict ' if strict else ''}{to}, {what}"
    return Case(label, wrong, attempt, named if wrong else ())


def _of_somebody(draw, path):
    form, to, row = _foreign(draw)
    what, wrong = "nothing", False
    if draw.random() < 0.7:
        name = draw.choice(sorted(row))
        what, wrong = f"{name} spoiled", True
        value = draw.choice((None, 5.5j, "", "\0", {}, [[]]))
        row = row | {name: {"z": 1} if value == 5.5j else value}
        if draw.random() < 0.3:
            del row[name]
        if name == "initial_reason_steps" or (form, name) == ("benchmark", "answer"):
            wrong = None
        if (form, name) == ("trl", "prompt"):
            wrong = None  # without it, what both texts begin with
    path.write_text(json.dumps(row) + "\n")
    return Case(
        f"{form} {to}, {what}",
        wrong,
        lambda: sources.read(path, form, to, TEMPLATES),
        (str(path),) if wrong else (),
    )
