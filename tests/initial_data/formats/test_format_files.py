"""Rows of files: where they are, which ones are bad, and files that cannot be read."""

import gzip
import json
import os

import pytest

from stepjax import records
from stepjax.initial_data.formats import files

ROWS = [{"id": f"r{n}", "text": "a\u2028b"} for n in range(5)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


CONTENTS = {
    "a.jsonl": lines(ROWS).encode(),
    "a.txt": lines(ROWS).encode(),
    "crlf.jsonl": lines(ROWS).replace("\n", "\r\n").encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + lines(ROWS).encode(),
    "no_end.jsonl": lines(ROWS).encode().rstrip(b"\n"),
    "lines.json": lines(ROWS).encode(),
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode(),
    "A.JSONL": lines(ROWS).encode(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS[name])
    with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
        file.write(CONTENTS[name])
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        found = list(files.rows(path))
        assert [row for _, row in found] == ROWS
        assert [place.row for place, _ in found] == [1, 2, 3, 4, 5]
        stem = name.partition(".")[0]
        if path.suffix != ".gz" or not name.endswith((".txt", ".JSONL")):
            assert [place.name for place, _ in found] == [
                f"{stem}-{n}" for n in range(5)
            ]


def test_parquet_files(tmp_path):
    parquet(tmp_path / "a.parquet", ROWS)
    found = list(files.rows(tmp_path / "a.parquet"))
    assert [row for _, row in found] == ROWS
    assert [str(place) for place, _ in found][-1] == f"{tmp_path / 'a.parquet'}:5"
    assert [place.name for place, _ in found][-1] == "a-4"


def test_places(tmp_path):
    path = tmp_path / "pretty.json"
    path.write_text('\n[\n {"a": 1},\n\n {"a":\n 2}, {"a": 3}]\n')
    found = list(files.rows(path))
    assert [str(place) for place, _ in found] == [
        f"{path}:3 (row 1)",
        f"{path}:5 (row 2)",
        f"{path}:6 (row 3)",
    ]
    path = tmp_path / "one.json"
    path.write_text('{"a":\n 1}')
    assert list(files.rows(path)) == [(files.Place(str(path), 1, 1, "one"), {"a": 1})]
    path = tmp_path / "one.jsonl"
    path.write_text('{"a": 1}\n')
    assert list(files.rows(path)) == [(files.Place(str(path), 1, 1, "one-0"), {"a": 1})]


def test_a_folder_stands_for_its_files_in_the_order_of_their_paths(tmp_path):
    parquet(tmp_path / "c.parquet", [{"n": 4}])
    for name, n in (("b/10.json", 2), ("b/2.json", 3), ("a/x/1.json", 0)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"n": n}))
    (tmp_path / "a" / "y.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n', mtime=0))
    (tmp_path / ".hidden").mkdir()
    for name in ("README.md", ".x.json", ".hidden/x.json", "a/x.jsonl.tmp"):
        (tmp_path / name).write_text("no rows")
    found = list(files.rows(tmp_path))
    assert [row["n"] for _, row in found] == [0, 1, 2, 3, 4]
    names = [place.name for place, _ in found]
    assert names == ["a/x/1", "a/y-0", "b/10", "b/2", "c-0"]


# Line of a file → the reason for its rejection.
BROKEN = {
    "cut off": (b'{"id": "x", "te', "broken JSON"),
    "two objects": (b'{"id": "x"} {"id": "y"}', "broken JSON"),
    "bytes that are not UTF-8": (b'{"id": "\xff"}', "broken JSON"),
    "UTF-16": ('{"id": "x"}'.encode("utf-16-le"), "broken JSON"),
    "not a number": (b'{"id": NaN}', "NaN is no JSON number"),
    "infinity": (b'{"id": -Infinity}', "-Infinity is no JSON number"),
    "a number of 5000 digits": (b'{"id": ' + b"1" * 5000 + b"}", "broken JSON"),
    "nested too deeply": (b'{"id": ' + b"[" * 9999, "broken JSON"),
    "a list": (b"[1, 2]", "no JSON object ([1, 2])"),
    "null": (b"null", "no JSON object (None)"),
    "a name twice": (b'{"id": "x", "id": "y"}', "the name 'id' is there twice"),
    "half a surrogate pair": (b'{"id": "\\ud83d"}', "half of a surrogate pair"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_among_a_thousand(tmp_path, kind):
    line, reason = BROKEN[kind]
    good = [json.dumps({"id": n}).encode() for n in range(999)]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join([*good[:617], line, *good[617:]]) + b"\n")
    with pytest.raises(ValueError) as caught:
        list(files.rows(path))
    assert str(caught.value).startswith(f"{path}:618: ")
    assert reason in str(caught.value) and "expected" in str(caught.value)
    rejects = files.Rejects()
    found = [row["id"] for _, row in files.rows(path, rejects)]
    assert found == list(range(999))
    assert (rejects.read, rejects.kept, len(rejects.rows)) == (1000, 999, 1)
    (row,) = rejects.rows
    assert (row["file"], row["line"]) == (str(path), 618)
    assert reason in row["reason"]
    assert row["row"] == line.rstrip(b"\r").decode("utf-8", "backslashreplace")
    records.write_jsonl(tmp_path / "rejects.jsonl", rejects.rows)
    assert json.loads((tmp_path / "rejects.jsonl").read_text("utf-8")) == row


def test_emoji_escaped_in_two_halves_is_good(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"id": "\\ud83d\\ude00"}\n')
    ((_, row),) = files.rows(tmp_path / "x.jsonl")
    assert row == {"id": "\U0001f600"}


def test_a_bad_row_of_an_array_is_listed(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"id": 0},\n 5,\n {"id": "\\udc00"},\n {"id": 3}]')
    with pytest.raises(ValueError, match=r"x\.json:2: no JSON object \(5\)"):
        list(files.rows(path))
    rejects = files.Rejects()
    assert [row["id"] for _, row in files.rows(path, rejects)] == [0, 3]
    assert [(row["line"], row["row"]) for row in rejects.rows] == [
        (2, "5"),
        (3, '{"id": "\\udc00"}'),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", b'[{"id": 0},\n {"id": 1', r"x\.json:2: broken JSON"),
        ("x.json", b'[{"id": 0}\n {"id": 1}]', r"x\.json:1: broken JSON"),
        ("x.json", b'[{"id": 0},\n]', r"x\.json:2: broken JSON"),
        ("x.json", b'[{"id": NaN}]', r"x\.json:1: broken JSON \(NaN is no"),
        ("x.json", b'[{"id": 0}]\n[1]', r"x\.json:1: text after the end"),
        ("x.json", b'[{"id": 0},\n {"id": "\xff"}]', r"x\.json:2: the text is no"),
        ("x.json", b"[]", r"x\.json: no rows; expected"),
        ("x.json", b" \n ", r"x\.json: no rows; expected"),
        ("x.json", b"", r"x\.json: no rows; expected"),
        ("x.jsonl", b"", r"x\.jsonl: no rows; expected"),
        ("x.jsonl.gz", b"", r"x\.jsonl\.gz: no rows; expected"),
        ("x.jsonl.gz", b'{"id": 0}\n', r"x\.jsonl\.gz: cannot be read \(Not a gzip"),
        (
            "x.json.gz",
            gzip.compress(b'[{"id": 0}]', mtime=0)[:-9],
            "cannot be read .*ended",
        ),
        ("x.parquet", b"PAR1 not really PAR1", r"x\.parquet: cannot be read"),
        ("x.parquet", b"", r"x\.parquet: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_stops(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(files.rows(tmp_path / name))
    with pytest.raises(ValueError, match=words):
        list(files.rows(tmp_path / name, files.Rejects()))


def test_a_gzip_file_that_is_cut_off_stops(tmp_path):
    text = "".join(f'{{"id": "{hash((n, n))}"}}\n' for n in range(20000)).encode()
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(text)[:-100])
    rejects, found = files.Rejects(), []
    with pytest.raises(
        ValueError, match=r"x\.jsonl\.gz: cannot be read .*ended before"
    ):
        for _, row in files.rows(path, rejects):
            found.append(row)
    assert 1000 < len(found) < 20000 and not rejects.rows


def test_a_parquet_file_that_is_cut_off_or_damaged_stops(tmp_path):
    path = tmp_path / "x.parquet"
    parquet(path, [{"id": str(n) * 50} for n in range(5000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read"):
        list(files.rows(path, files.Rejects()))


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no\.jsonl: cannot be read \(No such file"):
        list(files.rows(tmp_path / "no.jsonl", files.Rejects()))
    with pytest.raises(ValueError, match="no file to read in this folder"):
        list(files.rows(tmp_path, files.Rejects()))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "good.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"empty\.jsonl: no rows"):
        list(files.rows(tmp_path, files.Rejects()))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    parquet(tmp_path / "x.parquet", [{"id": 1}])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[data\]"'):
        list(files.rows(tmp_path / "x.parquet"))


def test_a_long_reading_says_how_far_it_is(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 4))
    monkeypatch.setattr(files.time, "monotonic", lambda: next(clock))
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n5\n' * 6)
    said = []
    rejects = files.Rejects(say=said.append)
    assert len(list(files.rows(tmp_path / "x.jsonl", rejects))) == 6
    assert said[0] == "3 rows are read, 1 rejected" and len(said) > 1


def test_links_in_a_folder(tmp_path):
    for name in ("real", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text(lines(ROWS))
    (tmp_path / "there" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "there" / "file.jsonl").symlink_to(tmp_path / "real" / "real.jsonl")
    names = [place.name for place, _ in files.rows(tmp_path / "there")]
    assert names[::5] == ["file-0", "linked/real-0", "there-0"] and len(names) == 15
    (tmp_path / "real" / "back").symlink_to(tmp_path / "there")
    with pytest.raises(ValueError, match="its files would be read twice"):
        list(files.rows(tmp_path / "there"))
    (tmp_path / "real" / "back").unlink()
    (tmp_path / "there" / "lost.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="lost.jsonl: cannot be read"):
        list(files.rows(tmp_path / "there"))


def test_a_folder_that_cannot_be_read_stops(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="inner: this folder cannot be read"):
        list(files.rows(tmp_path))


def test_files_with_other_endings_are_named(tmp_path):
    for name in ("a.jsonl", "b.ndjson", "c.csv", ".d.csv"):
        (tmp_path / name).write_text(lines(ROWS))
    said = []
    assert len(list(files.rows(tmp_path, files.Rejects(say=said.append)))) == 5
    (line,) = said
    assert "1 files are read; 2 files with other endings" in line and "b.ndjson" in line


def test_a_name_that_says_nothing_is_read_as_json_lines_if_it_begins_so(tmp_path):
    (tmp_path / "a.txt").write_text('\ufeff\n {"n": 1}\n5\n', "utf-8")
    rejects = files.Rejects()
    found = [row["n"] for _, row in files.rows(tmp_path / "a.txt", rejects)]
    assert found == [1] and rejects.rows[0]["line"] == 3
    for name, text in (("b.txt", "question,answer\nq,1\n"), ("c", "[1, 2]")):
        (tmp_path / name).write_text(text)
        words = f"{name}: the ending of its name does not say .* ends with one of .json"
        with pytest.raises(ValueError, match=words):
            list(files.rows(tmp_path / name, files.Rejects()))


def test_a_name_that_is_not_utf8_stops(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    with open(path, "w") as file:
        file.write(lines(ROWS))
    for place in (tmp_path, os.fsdecode(path)):
        with pytest.raises(ValueError, match="the name is not UTF-8"):
            list(files.rows(place))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            gzip.compress(b"{}", mtime=0),
            "packed by gzip; .* name that ends with .gz",
        ),
        (
            "a",
            gzip.compress(b"{}", mtime=0),
            "packed by gzip; .* name that ends with .gz",
        ),
        ("a.json", b"PAR1xxxx", "a parquet table; .* ends with .parquet"),
        ("a.xlsx", b"PK\x03\x04xx", "a spreadsheet or a zip archive; .* as CSV"),
        ("a.csv", b"PK\x03\x04xx", "a spreadsheet or a zip archive; .* as CSV"),
    ],
    ids=["gz-jsonl", "gz-bare", "parquet-json", "xlsx", "zip-csv"],
)
def test_files_of_another_kind_than_their_name_says(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: the file is {words}"):
        list(files.rows(tmp_path / name))
