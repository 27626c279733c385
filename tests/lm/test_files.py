"""Files that are replaced whole, or not at all."""

import errno
import json
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


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match="a.json: this is a pipe; expected an ordi"):
        files.read_json(tmp_path / "a.json")


RECORD = {"step": 15, "digests": {"['a']": "0f"}, "loss": 0.1, "who": "Größe\u2028"}


def test_a_record_that_was_changed_in_any_field_is_refused(tmp_path):
    path = tmp_path / "step_15.json"
    files.write_json(path, RECORD, sealed=True)
    assert files.read_json(path, sealed=True) == files.read_json(path) == RECORD
    text = path.read_text("utf-8")
    for old, new in (("15", "14"), ("0f", "1f"), ("0.1", "0.2"), ('"who"', '"whu"')):
        path.write_text(text.replace(old, new), "utf-8")
        with pytest.raises(ValueError, match="has changed since it was written") as e:
            files.read_json(path)
        assert str(path) in str(e.value) and "run that command again" in str(e.value)
    # A changed name of the digest makes it a field like any other.
    path.write_text(text.replace('"sha256"', '"sha257"'), "utf-8")
    with pytest.raises(ValueError, match="there is no 'sha256' in it"):
        files.read_json(path, sealed=True)


def test_a_file_of_an_earlier_version_is_read_unless_a_digest_is_needed(tmp_path):
    for value in (RECORD, {}, [], None):
        files.write_json(tmp_path / "old.json", value)
        assert files.read_json(tmp_path / "old.json") == value
        with pytest.raises(ValueError, match="old.json: there is no 'sha256' in it"):
            files.read_json(tmp_path / "old.json", sealed=True)


def test_a_digest_is_that_of_what_is_read_back():
    value = {"a": (1, 2), "b": {10: "x", 9: "y"}, "c": float("nan")}
    read = json.loads(json.dumps(files.seal(value)))
    assert list(files.unseal(read, "here", needed=True)) == ["a", "b", "c"]


def test_a_line_is_read_as_it_was_written_or_not_at_all():
    value = {"a": [1, 2.5], "é": {"b": None, "c": float("inf")}}
    line = files.sealed_line(value).encode()
    assert b"\n" not in line and "sha256" in json.loads(line)
    assert files.unsealed_line(line, "here") == value
    for at in range(len(line)):
        damaged = line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]
        for text in (damaged, line[:at]):
            with pytest.raises(ValueError):  # also of what is no UTF-8
                files.unsealed_line(text, "here")


def test_a_loss_of_power_finds_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def named_fsync(opened):
        done.append(f"fsync {os.readlink(f'/proc/self/fd/{opened}')}")
        fsync(opened)

    def named_replace(old, new):
        done.append(f"replace {new}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", named_fsync)
    monkeypatch.setattr(os, "replace", named_replace)
    path = tmp_path / "a" / "b" / "manifest.json"
    files.write_json(path, {})
    temporary = path.with_name(f".manifest.json.{os.getpid()}.tmp")
    assert done == [
        *(f"fsync {tmp_path / 'a'}", f"fsync {tmp_path}"),  # hold the new folders
        *(f"fsync {temporary}", f"replace {path}", f"fsync {path.parent}"),
    ]


def test_all_of_a_folder_is_synced_before_the_name_that_it_has(tmp_path, monkeypatch):
    (tmp_path / "p" / "d").mkdir(parents=True)
    (tmp_path / "p" / "d" / "array").write_text("1")
    done = []
    monkeypatch.setattr(
        os, "fsync", lambda opened: done.append(os.readlink(f"/proc/self/fd/{opened}"))
    )
    files.sync_all(tmp_path / "p")
    names = ("p/d", "p/d/array", "p", "")
    assert done == [str(tmp_path / name) for name in names]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    left = (".pairs.jsonl.4711.tmp", "M1/.search.json.3.tmp", ".data.k3_x.tmp/a")
    kept = (".lock", "a.tmp", ".a.tmp", "M1/x.notes.tmp", "orbax-checkpoint-tmp.txt")
    for name in (*left, *kept, "M1/params.orbax-checkpoint-tmp/state/d/0f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "M1" / "step_1.orbax-checkpoint-tmp-17").mkdir()
    files.remove_left(tmp_path)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(kept)
    assert [p.name for p in tmp_path.rglob("*") if p.is_dir()] == ["M1"]


def test_a_failed_write_names_its_file_and_leaves_no_other(tmp_path, monkeypatch):
    def full(opened):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "rows.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught, files.replacing(path) as file:
        file.write("new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["rows.txt"]
