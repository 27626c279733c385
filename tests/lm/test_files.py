"""Files that are replaced whole, or not at all."""

import os

import pytest

from stepjax.lm import files


def test_json_is_replaced_in_one_go(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "manifest.json"
    files.write_json(path, {"text": "Größe\u2028", "numbers": [1, 0.5, None]})
    assert files.read_json(path) == {
        "text": "Größe\u2028",
        "numbers": [1, 0.5, None],
    }
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"numbers": [2]})
    assert path.read_bytes() == before
    monkeypatch.undo()
    files.write_json(path, {"numbers": [2]})
    assert files.read_json(path) == {"numbers": [2]}
    assert [p.name for p in path.parent.iterdir()] == ["manifest.json"]


def test_a_block_that_raises_leaves_the_earlier_file_alone(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write("half of the n")
        file.flush()
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["rows.txt"]
    with files.replacing(path) as file:
        file.write("ä\n")
    assert path.read_bytes() == b"\xc3\xa4\n" and os.listdir(tmp_path) == ["rows.txt"]
