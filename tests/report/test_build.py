"""The page as a file: what is in it, what is escaped, and that it loads nothing."""

import base64
import gzip
import hashlib
import html.parser
import json
import re
import shutil

import hostile_run
import pytest
from hostile_run import IMAGE, SCRIPT
from runs import command, finished_run

from stepjax.lm import files
from stepjax.report import build


class Page(html.parser.HTMLParser):
    """Elements, attributes and texts of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.words = [], {}, []
        self._inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        self._inside = (
            (tag, attrs.get("id", "")) if tag in ("script", "style") else None
        )

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside and self._inside[0] == "script":
            self.scripts[self._inside[1]] = data
        elif not self._inside:
            self.words.append(data)

    def unpacked(self, name):
        return json.loads(gzip.decompress(base64.b64decode(self.scripts[name])))


def page_of(folder, **options):
    made = build.write(folder, hostile_run.is_right, **options)
    return made, Page(made.path.read_text("utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return page_of(hostile_run.make(tmp_path_factory.mktemp("report") / "<b>run"))


def test_searches_of_questions_and_of_the_test_are_inside(written):
    made, page = written
    assert made.problems == 8 and made.left_out == ""
    index = page.unpacked("index")
    assert [(i["model"], i["problems"]) for i in index] == [
        ("M1", "questions"),
        ("M1", "test"),
    ]
    rows = page.unpacked("chunk0")
    assert len(rows) == 8 and rows[0]["problem"] == f"Add {SCRIPT} to {IMAGE}"
    assert "graded" not in rows[0]
    assert [row["graded"]["right"] for row in rows[4:]] == [True, False, False, False]


def test_html_in_texts_is_text(written):
    _, page = written
    assert not [tag for tag, _ in page.elements if tag in ("img", "b")]
    assert set(page.scripts) == {"", "index", "chunk0"}  # "" is page.js
    words = "".join(page.words)
    assert f"M1, train: first: {IMAGE}" in words and "<b>run" in words


def test_nothing_is_loaded_and_only_the_script_of_the_page_may_run(written):
    _, page = written
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "base")
        assert not {"src", "srcset", "onerror", "onclick"} & attrs.keys()
        links = [v for k, v in attrs.items() if k.endswith("href")]
        assert all(link.startswith("#") for link in links)
    (policy,) = [
        attrs["content"] for tag, attrs in page.elements if "http-equiv" in attrs
    ]
    digest = hashlib.sha256(page.scripts[""].encode()).digest()
    named = base64.b64encode(digest).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{named}'"
    )


def test_the_script_makes_no_html_of_texts(written):
    script = written[1].scripts[""]
    names = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|eval\(|fetch\("
    )
    assert not re.search(names, script)


def test_figures_of_the_run_and_of_the_paper_are_in_tables(written):
    words = " ".join(" ".join(written[1].words).split())
    assert "25.0 [5.0, 70.0]" in words
    assert "this run, M1 25.0 - - - - - -" in words
    assert "paper, 7B M4 88.8 73.3 65.2 38.7 13.3 55.0 55.7" in words
    assert "57.2 92.8 91.6 92.0 92.2" in words
    # 3 samples of 2 tokens, then 5 and 2; 2 and 4; of four problems.
    assert re.search(r"M1 search questions [\d,]+ \d+ 16 ", words)
    assert "Accuracy: GSM8K_test" in words and "paper, 7B, GSM8K" in words


def test_test_time_methods_have_tables_and_a_plot_for_each_file(written):
    _, page = written
    words = " ".join(" ".join(page.words).split())
    for name in ("<b>$x$-0a1b2c3d", "test"):
        title = f"M1, 4 problems of {name}"
        assert (
            f"{title} method n right % [95 %] solver judge budget read greedy 1 25.0 "
            "[12.5, 62.5] 16 8 24 9 dvts 2 50.0 [25.0, 75.0] 56 8 64 9 dvts 10 75.0 "
            "[37.5, 87.5] 248 8 256 9 "
        ) in words
        assert (
            f"{title}: right % (n) within a budget of tokens method 27 tokens 54 "
            "tokens 108 tokens 216 tokens 432 tokens greedy 25.0 (1) 25.0 (1) 25.0 (1) "
            "25.0 (1) 25.0 (1) dvts - - 50.0 (2) 50.0 (2) 75.0 (10) "
        ) in words
        label = f"Accuracy against tokens: {title}"
        drawn = [a for tag, a in page.elements if a.get("aria-label") == label]
        assert len(drawn) == 1
    ids = [attrs.get("id") for tag, attrs in page.elements if tag == "section"]
    assert ids.index("accuracy") + 1 == ids.index("solved")


def test_results_of_other_graders_stand_apart(tmp_path):
    folder = hostile_run.make(tmp_path / "run")
    path = folder / "eval" / "M1_test_solve-dvts-2.json"
    result = files.read_json(path)
    for changes, title in (
        ({"grading": "strict"}, "M1, 4 problems of test, strict grading"),
        ({"grader": 0}, "M1, 4 problems of test, grader 0"),
    ):
        files.write_json(path, result | changes)
        words = " ".join(" ".join(page_of(folder)[1].words).split())
        assert f"{title} method n right % [95 %]" in words


def test_solutions_without_known_answers_are_left_out(tmp_path):
    folder = hostile_run.make(tmp_path / "run")
    for path in folder.glob("eval/*_solve-*.json"):
        result = files.read_json(path)
        result["metrics"].pop("accuracy")
        files.write_json(path, result)
    _, page = page_of(folder)
    assert "solved" not in [attrs.get("id") for _, attrs in page.elements]


def test_the_same_run_gives_the_same_page(tmp_path):
    folder = hostile_run.make(tmp_path / "run")
    first = page_of(folder)[0].path.read_bytes()
    assert page_of(folder)[0].path.read_bytes() == first


def test_settings_are_listed_by_their_full_names(tmp_path):
    folder = hostile_run.make(tmp_path / "run")
    settings = {"iterations": 2, "search": {"width": 6}, "name": SCRIPT}
    words = " ".join(" ".join(page_of(folder, settings=settings)[1].words).split())
    assert f"search.width 6 name {SCRIPT}" in words
    assert "candidates per step 6" in words


def test_a_run_without_searches_has_a_page(tmp_path):
    folder = hostile_run.make(tmp_path / "run")
    for path in folder.glob("*/*.jsonl"):
        path.unlink()
    made, page = page_of(folder)
    assert made.problems == 0 and page.unpacked("index") == []
    assert "chunk0" not in page.scripts


def test_what_was_left_out_is_said(tmp_path, monkeypatch):
    folder = hostile_run.make(tmp_path / "run")
    whole, page = page_of(folder)
    searches = len(page.scripts["index"]) + len(page.scripts["chunk0"])
    assert whole.left_out == "" and build.MOST == 25_000_000
    monkeypatch.setattr(build, "MOST", build._BESIDE + searches - 1)
    made, page = page_of(folder)
    assert made.left_out.startswith("explanations of other comparisons")
    assert f"it lacks {made.left_out}. stepjax show" in "".join(page.words)


def test_a_folder_without_a_finished_stage_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished stage; expected a run"):
        build.write(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_search_that_has_changed_is_refused(tmp_path):
    folder = hostile_run.make(tmp_path / "run")
    path = folder / "M1" / "search.json"
    manifest = files.read_json(path)
    files.write_json(path, manifest | {"files": {"search.jsonl": "0" * 64}})
    with pytest.raises(ValueError, match="search.jsonl has changed since"):
        build.write(folder)


def test_the_command_writes_the_page_of_a_finished_run(quick_runs, tmp_path, capsys):
    folder = tmp_path / "run"
    ignored = shutil.ignore_patterns("params", "tensorboard")
    shutil.copytree(finished_run(), folder, ignore=ignored)
    assert command("report", f"--workdir={folder}") == 0
    said = capsys.readouterr().err
    path = folder / "report" / "index.html"
    assert f"{path}: " in said and "72 searched problems" in said
    page = Page(path.read_text("utf-8"))
    assert [f"{i['model']} {i['problems']}" for i in page.unpacked("index")] == [
        *("M1 questions", "M1 test", "M2 questions", "M2 test", "M3 test")
    ]
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == 12
    assert path.stat().st_size < 10**6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("M1_test_greedy.json", "M1, eval greedy: the result has no metrics and no"),
        ("M1_test_solve-dvts-2.json", "solve-dvts-2.json: the result has no metrics"),
        (
            "M1_GSM8K_test-0a1b2c3d_greedy.json",
            "greedy.json: the result has no metrics",
        ),
    ],
)
def test_a_result_that_lacks_what_is_read_is_named(tmp_path, name, words):
    folder = hostile_run.make(tmp_path / "run")
    files.write_json(folder / "eval" / name, {"seconds": 1.0})
    with pytest.raises(ValueError, match=f"{words}.*; expected what"):
        build.write(folder)
    assert not (folder / "report").exists()


def test_the_command_needs_a_run(tmp_path, capsys):
    assert command("report", f"--workdir={tmp_path / 'none'}") == 2
    assert "there is no such folder; expected the --workdir" in capsys.readouterr().err
