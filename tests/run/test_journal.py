"""What an unfinished search has done, read again after a kill."""

import json

from stepjax.run.journal import Journal


def journal(path):
    rows = {"to_row": dict, "from_row": dict, "name": lambda row: row["id"]}
    return Journal(path, {"M1": "1"}, **rows)


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
