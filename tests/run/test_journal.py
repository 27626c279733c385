"""What an unfinished search has done, read again after a kill."""

import json

import pytest

from stepjax.run.journal import Journal


def journal(path, said=None, **inputs):
    rows = {"to_row": dict, "from_row": dict, "name": lambda row: row["id"]}
    said = [] if said is None else said
    return Journal(path, {"M1": "1"} | inputs, **rows, say=said.append)


def test_a_line_that_ends_within_a_character_is_cut_off(tmp_path):
    path = tmp_path / "search.partial.jsonl"
    journal(path).add([{"id": "é1"}], {0: {"id": "é2"}})
    whole = path.read_bytes()
    torn = json.dumps({"closed": [{"id": "é"}]}, ensure_ascii=False).encode()
    path.write_bytes(whole + torn[: torn.index(b"\xc3") + 1])
    again = journal(path)
    assert again.closed == {"é1": {"id": "é1"}} and again.active == {0: {"id": "é2"}}
    assert path.read_bytes() == whole
    path.write_bytes(torn)  # of other inputs, and torn
    assert journal(path).closed == {}


CHANGED = "line 3: this has changed since it was written"


def flipped(line):
    return line.replace(b'"b"', b'"c"')  # still JSON


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flipped, CHANGED),
        (lambda line: line[: len(line) // 2], CHANGED),
        (lambda line: b"{}", CHANGED),
        (lambda line: b"[" * 100_000, CHANGED),
        (lambda line: b"\xff" + line[1:], "utf-8"),
    ],
)
def test_a_damaged_line_costs_itself_and_what_came_after_it(tmp_path, damage, reason):
    path, said = tmp_path / "search.partial.jsonl", []
    first = journal(path)
    for name in "abc":
        first.add([{"id": name}], {0: {"id": f"{name} in flight"}})
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 5 and b'"b"' in lines[2]
    lines[2] = damage(lines[2])
    path.write_bytes(b"\n".join(lines))
    again = journal(path, said)
    assert again.closed == {"a": {"id": "a"}}
    assert again.active == {0: {"id": "a in flight"}}
    (line,) = said
    assert line.startswith(f"{path}: line 3 of 4 is damaged (")
    assert reason in line
    again.add([{"id": "b"}], {})  # goes on where the good lines end
    assert journal(path, said).closed.keys() == {"a", "b"} and len(said) == 1


def test_a_journal_of_other_inputs_is_named_and_not_used(tmp_path):
    path, said = tmp_path / "search.partial.jsonl", []
    journal(path).add([{"id": "a"}], {})
    assert journal(path, said, M2="2").closed == {} and len(said) == 1
    assert "its first line is damaged or names other inputs" in said[0]


@pytest.mark.parametrize(
    "places",
    [(0, 2, 3), (0, 1, 1, 2, 3), (0, 2, 1, 3)],
    ids=["gone", "twice", "swapped"],
)
def test_lines_that_are_not_in_their_places_are_searched_again(tmp_path, places):
    path, said = tmp_path / "search.partial.jsonl", []
    first = journal(path)
    for name in "abc":
        first.add([{"id": name}], {})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[place] for place in places))
    again = journal(path, said)
    known = ["a"] * (places[1] == 1)
    assert list(again.closed) == known
    assert "it was written as line" in said[0]
    assert path.read_bytes() == b"".join(lines[: 1 + len(known)])
