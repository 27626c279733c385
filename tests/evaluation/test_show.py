"""``stepjax show``: searches and answers as text, from hand-made files."""

import pytest
from runs import command

from stepjax import config, records, trajectory
from stepjax.evaluation import show
from stepjax.lm import files
from stepjax.records import Question
from stepjax.run import manifest
from stepjax.trajectory import Candidate, Expansion, Refused, State, Verdict


def is_right(problem, steps, step):
    """A step is right when it counts the steps before it; "dark" is not known."""
    return None if problem == "dark" else step == str(len(steps))


def candidate(text, count=1, finished=False):
    return Candidate((1,), text, count, -1.5, finished)


def calls(table):
    return tuple(
        Verdict(int(a), int(b), None if w == "-" else w, f"as {a}{b}")
        for a, b, w in table.split()
    )


PAIR = Expansion(
    *(1, 0, (candidate("x"), candidate("0", 3), candidate("y")), 2),
    *(calls("01B 10A 02- 20B 12A 21B"), (1, 4, 0), 1, 2, "pair", (0, 0, 1, 0)),
    (Refused("cut off", 2, "and then"),),
)
TIE = Expansion(
    *(2, 0, (candidate("1", 2, True), candidate("z")), 0, calls("01A 10A"), (1, 1)),
    *(0, None, "append", (0, 0, 2, 0)),
)
KEPT = (PAIR.candidates[1], TIE.candidates[0])
SEARCHED = State(
    Question("q1", "count\nto one"), KEPT, (0, None), (PAIR, TIE), "complete"
)
EMPTY = State(
    Question("q2", "count"),
    (),
    (),
    (Expansion(*(1, 0, (), 4, (), (), None, None, "resample", (0, 0, 1, 0))),),
    "budget",
)
WRONG = State(
    Question("q3", "count"),
    (candidate("0"), candidate("7")),
    (None, None),
    (
        Expansion(*(1, 0, (candidate("0"),), 0, (), (0,), 0, None, "append", (0,))),
        Expansion(*(2, 0, (candidate("7"),), 0, (), (0,), 0, None, "append", (0,))),
    ),
    "length",
)
ANSWER = {"problem": "5*3", "answer": "15", "prediction": "16", "right": False}
ANSWER |= {"id": "t1", "text": "Step 1: no", "finished": True}
RIGHT = ANSWER | {"id": "t2", "right": True, "prediction": "15"}


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "M1").mkdir()
    rows = map(trajectory.to_row, (SEARCHED, EMPTY, WRONG))
    records.write_jsonl(tmp_path / "M1" / "search.jsonl", rows)
    for number in (1, 2):
        path = tmp_path / "eval" / f"M{number}_test_greedy.json"
        files.write_json(path, {"items": [RIGHT, ANSWER]})
    return tmp_path


def heads(text):
    """The first words of every problem."""
    lines = text.split("\n")[1:]
    return [line.partition(":")[0] for line in lines if line[:1] not in ("", " ")]


def test_a_search_shows_candidates_verdicts_in_both_orders_and_the_gold(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert (
        show.of_state(SEARCHED, is_right)
        == """\
q1: complete, 2 expansions, 2 steps kept
    count
    to one

  step 1, attempt 1: BEST over WORST is a preference, and BEST goes on
    1        score 1, sampled 1×, logp -1.50, wrong: x
    2 BEST   score 4, sampled 3×, logp -1.50, right: 0
    3 WORST  score 0, sampled 1×, logp -1.50, wrong: y
    refused 2 samples, cut off: and then
    verdicts:
      2 as A, 3 as B: 2 wins: as 12
      3 as A, 2 as B: 2 wins: as 21
      1 as A, 2 as B: 2 wins: as 01
      2 as A, 1 as B: 2 wins: as 10
      1 as A, 3 as B: no verdict: as 02
      3 as A, 1 as B: 1 wins: as 20

  step 2, attempt 1: no preference; KEPT, which was sampled most often, goes on
    1 KEPT   score 1, sampled 2×, logp -1.50, ends, right: 1
    2        score 1, sampled 1×, logp -1.50, wrong: z
    verdicts:
      1 as A, 2 as B: 1 wins: as 01
      2 as A, 1 as B: 2 wins: as 10

  kept:
    right: 0
    right: 1
"""
    )


def test_without_gold_nothing_is_called_right_or_wrong():
    text = show.of_state(SEARCHED)
    assert "right" not in text and "wrong" not in text
    assert "    2 BEST   score 4, sampled 3×, logp -1.50, 0\n" in text
    assert "no candidates; 4 samples were malformed" in show.of_state(EMPTY)
    assert "  kept:\n    nothing\n" in show.of_state(EMPTY)


def test_ratings_show_what_each_solution_got():
    rated = Expansion(
        *(1, 0, (candidate("x"), candidate("0")), 0),
        (Verdict(0, 0, "4", "fine"), Verdict(1, 1, None, "hm")),
        *((4, None), 0, None, "append", (0, 0, 1, 0)),
    )
    text = show.of_state(State(Question("q", "p"), KEPT[:1], (None,), (rated,)))
    assert "      1: rating 4: fine\n      2: no verdict: hm\n" in text
    assert " no score, sampled 1×" in text


def test_problems_are_chosen(workdir):
    def chosen(**options):
        return heads(show.show(workdir, 1, is_right=is_right, **options))

    assert chosen() == ["q1", "q2", "q3"] and chosen(count=2) == ["q1", "q2"]
    assert chosen(choice="wrong") == ["q3"]
    assert chosen(choice="ties") == ["q1"]
    assert sorted(chosen(choice="random", count=9)) == ["q1", "q2", "q3"]
    assert len(chosen(choice="random", count=2)) == 2
    one = show.show(workdir, 1, problem="q2", is_right=is_right)
    assert one == show.of_state(EMPTY, is_right)
    assert "answer 16, right is 15" in show.show(workdir, 1, problem="t1")


def test_answers_stand_in_where_nothing_was_searched_or_is_known(workdir):
    assert heads(show.show(workdir, 2)) == ["t2", "t1"]
    text = show.show(workdir, 2, choice="wrong")
    assert heads(text) == ["t1"]
    assert text.startswith("M2: 1 of 1 wrong answers, from eval/M2_test_greedy.json\n")
    assert heads(show.show(workdir, 1, choice="wrong")) == [
        "t1"
    ]  # the gold of single steps is not known


def test_the_searches_of_an_evaluation_stand_in_for_those_of_questions(workdir):
    for name, states in (("test", (SEARCHED, WRONG)), ("a-1234", (EMPTY,))):
        path = workdir / "eval" / f"M2_{name}_search.jsonl"
        records.write_jsonl(path, map(trajectory.to_row, states))
        files.write_json(
            path.with_suffix(".json"), {"inputs": {}, "files": {}, "items": []}
        )
    text = show.show(workdir, 2, is_right=is_right)
    assert heads(text) == ["q1", "q3"]
    first = workdir / "eval" / "M2_test_search.jsonl"
    assert text.startswith(f"M2: 2 of 2 problems, from {first}\n")
    assert heads(show.show(workdir, 2, choice="ties")) == ["q1"]
    assert show.show(workdir, 2, problem="q2") == show.of_state(EMPTY)
    assert show.newest_search(workdir, 3) == 2
    # A problem that was searched twice is shown twice, each time with its file.
    second = workdir / "eval" / "M2_a-1234_search.jsonl"
    records.write_jsonl(second, [trajectory.to_row(SEARCHED)])
    both = show.show(workdir, 2, problem="q1")
    assert both.count("q1: ") == 2
    assert both.index(f"from {first}\n") < both.index(f"from {second}\n")
    records.write_jsonl(second, [trajectory.to_row(EMPTY)])
    # Those of M1's own questions come first; a result that was dropped has none.
    assert "M1/search.jsonl" in show.show(workdir, 1)
    first.with_suffix(".json").unlink()
    assert heads(show.show(workdir, 2)) == ["q2"]


@pytest.mark.parametrize(
    ("number", "options", "words"),
    [
        (1, {"problem": "q9"}, "'q9' is no problem of M1.* such as q1, q2, q3, t2, t1"),
        (3, {}, "M3 of .* has no searches and no answers"),
        (2, {"choice": "ties"}, "M2 has no search of its questions"),
        (1, {"count": 0}, "n=0; expected"),
        (1, {"choice": "best"}, "choice='best'"),
    ],
)
def test_what_is_not_there_is_named(workdir, number, options, words):
    with pytest.raises(ValueError, match=words):
        show.show(workdir, number, **options)


def test_a_damaged_search_is_named(workdir):
    path = workdir / "M1" / "search.jsonl"
    path.write_text('{"id": "q1"}\n')
    with pytest.raises(ValueError, match=r"search\.jsonl: a row is no search"):
        show.show(workdir, 1)


@pytest.mark.parametrize("name", ["M1/search", "eval/M2_test_search"])
def test_a_search_that_was_changed_is_not_shown(workdir, name):
    path, number = workdir / f"{name}.jsonl", int(name[name.index("M") + 1])
    records.write_jsonl(path, [trajectory.to_row(SEARCHED)])
    written = {"inputs": {}, "files": {path.name: manifest.file_digest(path)}}
    files.write_json(path.with_suffix(".json"), written | {"items": []})
    assert "count" in show.show(workdir, number)
    path.write_text(path.read_text("utf-8").replace('"count": 3', '"count": 2', 1))
    with pytest.raises(ValueError, match=f"{path} has changed since it was written; "):
        show.show(workdir, number)


def test_long_texts_are_wrapped_under_their_beginning(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = show.wrapped("word " * 30, "  ", "head: ")
    assert max(map(len, lines)) <= 60 and len(lines) == 3
    assert lines[0].startswith("head: word") and lines[1].startswith("  word")


def test_a_damaged_result_is_named(workdir):
    path = workdir / "eval" / "M2_test_greedy.json"
    for text, words in (("{", "broken JSON (Expecting "), ("{}", "no result with")):
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            show.show(workdir, 2)
        assert str(error.value).startswith(f"{path}: {words}")
        assert "; expected " in str(error.value)


def shown(capsys, *arguments):
    """Status of the command, and what it prints."""
    capsys.readouterr()
    status = command("show", *arguments)
    return status, capsys.readouterr()


def test_the_command_shows_the_newest_model_that_has_searched(workdir, capsys):
    c = config.default()
    files.write_json(workdir / "config.json", config.to_dict(c))
    for number in (1, 2):
        files.write_json(workdir / f"M{number}" / "manifest.json", {})
    status, said = shown(capsys, f"--workdir={workdir}", "--ties", "--n=1")
    assert status == 0 and said.out == show.show(workdir, 1, choice="ties", count=1)
    status, said = shown(capsys, f"--workdir={workdir}", "--model=M2", "--problem=t1")
    assert status == 0 and "answer 16, right is 15" in said.out
    status, said = shown(capsys, f"--workdir={workdir}", "--ties", "--wrong")
    assert status == 2 and "--wrong and --ties are given together" in said.err
    status, said = shown(capsys, f"--workdir={workdir}", "--problem=nope")
    assert status == 1 and "'nope' is no problem of M1" in said.err
