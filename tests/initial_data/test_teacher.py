"""Teachers: kept answers, replay, a model of our own."""

import hashlib
import json

import pytest
from fakes import FakeSampler, random_parameters, teacher_options
from small_models import small_decoder

from stepjax.initial_data import teacher, teacher_local
from stepjax.initial_data.teacher_answers import Answer, Kept, Request
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler


def options(**changed):
    return teacher_options(**{"backend": "local"} | changed)


class Model:
    """Writes each prompt in capitals; remembers what it was asked."""

    def __init__(self, stop_after=None):
        self.asked, self.stop_after = [], stop_after

    def __call__(self, prompts):
        for index, prompt in reversed(list(enumerate(prompts))):
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(prompt)
            yield index, Answer(prompt.upper(), prompt != "long", 3)


def lines(path):
    return path.read_text("utf-8").splitlines()


def row(prompt, text="t", **more):
    return {"prompt": prompt, "text": text} | more


def write(path, *rows, end="\n"):
    path.write_text("\n".join(map(json.dumps, rows)) + end, "utf-8")
    return path


# The request.


def test_the_key_is_the_sha256_of_the_request_as_canonical_json():
    request = Request("a\u2028b", "M", 0, 5)
    text = '{"max_tokens":5,"model":"M","prompt":"a\\u2028b","temperature":0.0}'
    assert request.key() == hashlib.sha256(text.encode()).hexdigest()
    others = [
        request._replace(prompt="a"),
        request._replace(model="N"),
        request._replace(temperature=0.5),
        request._replace(max_tokens=6),
    ]
    assert len({r.key() for r in (request, *others)}) == 5
    assert request._replace(temperature=0.0).key() == request.key()


# Kept answers.


def test_answers_come_in_order_and_equal_prompts_are_asked_once(tmp_path):
    model, done = Model(), []
    ask = teacher.make_teacher(
        options(), tmp_path / "deep" / "kept", generate=model, on_done=done.append
    )
    answers = ask(["one", "long", "one", "two"])
    assert [a.text for a in answers] == ["ONE", "LONG", "ONE", "TWO"]
    assert [a.finished for a in answers] == [True, False, True, True]
    assert sorted(model.asked) == ["long", "one", "two"]
    assert done == [0, 1, 1, 2] and sum(done) == 4
    assert ask([]) == []


def test_what_was_answered_before_a_stop_is_not_asked_again(tmp_path):
    path = tmp_path / "kept"
    first, second = Model(stop_after=2), Model()
    with pytest.raises(KeyboardInterrupt):
        teacher.make_teacher(options(), path, generate=first)(["a", "b", "c", "d"])
    assert first.asked == ["d", "c"] and len(lines(path)) == 2
    done = []
    ask = teacher.make_teacher(options(), path, generate=second, on_done=done.append)
    answers = ask(["a", "b", "c", "d", "d"])
    assert second.asked == ["b", "a"] and done == [3, 1, 1]
    assert [a.text for a in answers] == ["A", "B", "C", "D", "D"]


@pytest.mark.parametrize(
    "changed", [{"model": "N"}, {"temperature": 0.5}, {"max_tokens": 99}]
)
def test_another_request_is_asked_anew(tmp_path, changed):
    model = Model()
    teacher.make_teacher(options(), tmp_path / "k", generate=model)(["a"])
    teacher.make_teacher(options(**changed), tmp_path / "k", generate=model)(["a"])
    assert model.asked == ["a", "a"] and len(lines(tmp_path / "k")) == 2


def test_a_torn_last_line_is_cut_whatever_its_length(tmp_path):
    path = tmp_path / "kept"
    teacher.make_teacher(options(), path, generate=Model())(["ä\u2028", "b"])
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for size in range(start, len(whole) - 1):
        path.write_bytes(whole[:size])
        with Kept(path) as kept:
            assert kept.spent == 3, size
        assert path.read_bytes() == whole[:start]
    path.write_bytes(whole[:-1])  # only the newline is missing: nothing is lost
    with Kept(path) as kept:
        assert kept.spent == 6
        kept.add(Request("c", "M", 0.0, 1), Answer("C", True, 1))
    assert path.read_bytes().startswith(whole) and len(lines(path)) == 3


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"text": "B"', '"text": "Z"', "has changed since it was written"),
        ('"tokens": 3', '"tokens": 4', "has changed since it was written"),
        ('"sha256"', '"sha257"', "unknown field 'sha257'"),
        ('{"key"', 'x"key"', "broken JSON"),
        ('"text": "B"', '"text": "B\\', "broken JSON"),
    ],
)
def test_a_damaged_line_costs_only_its_answer(tmp_path, old, new, reason):
    path, said, model = tmp_path / "kept", [], Model()
    teacher.make_teacher(options(), path, generate=Model())(["a", "b", "c"])
    every = lines(path)
    assert '"text": "B"' in every[1] and old in every[1]
    path.write_text("\n".join([every[0], every[1].replace(old, new), every[2], ""]))
    ask = teacher.make_teacher(options(), path, generate=model, say=said.append)
    assert [answer.text for answer in ask(["a", "b", "c"])] == ["A", "B", "C"]
    assert model.asked == ["b"] and len(said) == 1
    assert f"{path}:2: " in said[0] and reason in said[0] and "again" in said[0]
    assert lines(path)[3] == every[1]
    with pytest.raises(ValueError, match=reason):
        teacher.replay(path)


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"id": "p1", "problem": "x"}', "the last line begins with"),
        ('{"id": "p1", "problem": "x"}\n', "kept:1: unknown field 'id'"),
        ('{"prompt": "p", "text": "t"}\n', "kept:1: field 'key' is missing"),
        ('{"key": "k", "prompt": "p"}\n', "kept:1: missing field 'text'"),
        ('{"key": 1, "prompt": "p", "text": "t"}\n', "expected a string"),
        (
            '{"key": "k", "prompt": "p", "text": "t", "tokens": -1}\n',
            "a number from 0",
        ),
        (
            '{"key": "k", "prompt": "p", "text": "t", "tokens": NaN}\n',
            "a number from 0",
        ),
        ('{"key": "k", "prompt": "p", "text": "t", "finished": 1}\n', "true or false"),
        ('{"key": "k\n{"key": "k", "prompt": "p", "text": "t"}\n', "kept:1: broken"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_was(tmp_path, text, reason):
    path = tmp_path / "kept"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        teacher.make_teacher(options(), path, generate=Model())(["a"])
    assert path.read_text() == text


def test_two_processes_cannot_keep_answers_in_one_file(tmp_path):
    ask = teacher.make_teacher(options(), tmp_path / "kept", generate=Model())
    with Kept(tmp_path / "kept"):  # locks belong to open files, not to processes
        with pytest.raises(ValueError, match="another process keeps"):
            ask(["a"])
    assert ask(["a"])[0].text == "A"


def test_two_files_of_answers_can_be_joined(tmp_path):
    for name, prompts in (("one", ["a", "b"]), ("two", ["b", "c"])):
        teacher.make_teacher(options(), tmp_path / name, generate=Model())(prompts)
    both = (tmp_path / "one").read_bytes() + (tmp_path / "two").read_bytes()
    (tmp_path / "both").write_bytes(both)
    model = Model()
    ask = teacher.make_teacher(options(), tmp_path / "both", generate=model)
    assert [a.text for a in ask(["c", "b", "a"])] == ["C", "B", "A"]
    assert model.asked == []


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    with Kept(path) as kept:
        kept.add(Request("a", "M", 0.0, 1), Answer("A", True, 1))
        before = path.read_bytes()
        file = kept._file

        class Full:
            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                file.write(data[:9])
                raise OSError(28, "No space left on device")

        kept._file = Full()
        with pytest.raises(OSError, match="No space"):
            kept.add(Request("b", "M", 0.0, 1), Answer("B", True, 1))
        assert path.read_bytes() == before and kept.spent == 1


@pytest.mark.parametrize(
    "prompts, reason",
    [
        ("one text", "expected a list"),
        (["a", ""], "prompt 2 is ''"),
        (["a", " \n"], "prompt 2"),
        ([None], "prompt 1 is None"),
        (["half \ud800"], "UTF-8"),
    ],
)
def test_prompts_that_cannot_be_sent_are_refused(tmp_path, prompts, reason):
    ask = teacher.make_teacher(options(), tmp_path / "kept", generate=Model())
    with pytest.raises(ValueError, match=reason):
        ask(prompts)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"backend": "world"}, "teacher.backend='world'"),
        ({"temperature": -1.0}, "teacher.temperature=-1.0"),
        ({"temperature": float("nan")}, "teacher.temperature=nan"),
        ({"max_tokens": 0}, "teacher.max_tokens=0"),
        ({"concurrency": 0}, "teacher.concurrency=0"),
        ({"requests_per_minute": -1}, "teacher.requests_per_minute"),
        ({"token_budget": -1}, "teacher.token_budget"),
        ({"timeout": 0.0}, "teacher.timeout"),
        ({"retries": -1}, "teacher.retries"),
        ({"backend": "replay"}, "teacher.file is empty"),
        ({}, "given no model"),
    ],
)
def test_settings_out_of_range(tmp_path, changed, reason):
    with pytest.raises(ValueError, match=reason):
        teacher.make_teacher(options(**changed), tmp_path / "kept")


def test_answers_need_a_file_on_this_machine():
    with pytest.raises(ValueError, match="given no file"):
        teacher.make_teacher(options(), generate=Model())
    with pytest.raises(ValueError, match="object storage"):
        teacher.make_teacher(options(), "gs://b/kept", generate=Model())(["a"])


# Replay.


def test_replay_answers_by_prompt_and_does_not_write(tmp_path):
    path = write(
        tmp_path / "answers",
        row("one", "1"),
        row("two", "2", finished=False, tokens=5, key="k", model="M"),
    )
    before, done = path.read_bytes(), []
    ask = teacher.make_teacher(
        teacher_options(backend="replay", model="", file=str(path)), on_done=done.append
    )
    assert ask(["two", "one", "two"]) == [
        Answer("2", False, 5),
        Answer("1", True, 0),
        Answer("2", False, 5),
    ]
    assert path.read_bytes() == before and done == [3]


def test_what_a_teacher_kept_can_be_replayed(tmp_path):
    path = tmp_path / "kept"
    kept = teacher.make_teacher(options(), path, generate=Model())(["a", "long", "ä"])
    replayed = teacher.replay(path)(["a", "long", "ä"])
    assert replayed == kept and [a.finished for a in kept] == [True, False, True]


def test_replay_names_the_first_missing_prompt_and_counts_them(tmp_path):
    ask = teacher.replay(write(tmp_path / "answers", row("one")))
    with pytest.raises(ValueError, match="no answer to 2 of 3 prompts.*is 'b'"):
        ask(["b", "one", "a", "b"])


def test_replay_refuses_two_answers_unless_the_model_decides(tmp_path):
    path = write(
        tmp_path / "answers",
        row("p", "x", model="M"),
        row("p", "y", model="N"),
        row("p", "x", model="M"),
    )
    with pytest.raises(ValueError, match=r"answers:2: .* at .*answers:1"):
        teacher.replay(path)
    assert teacher.replay(path, "N")(["p"])[0].text == "y"
    assert teacher.replay(path, "M")(["p"])[0].text == "x"


# A model of our own.


def test_a_model_of_ours_answers_in_batches_until_it_stops(codec):
    texts = {
        "8*7+4\nA\n": "Check [[A]]",
        "8*7+4\nB\n": "no end (+) (+) (+) (+) (+) (+) (+) (+)",
        "5*3+1\nC\n": "[[B]] more",
        "5*3+1\n": "ends",
    }
    eos = codec.tokenizer.eos_id

    def respond(context, prompt, path):
        text = texts[context + prompt]
        assert path[1] > 0 and path[0] == 0
        return (*codec.tokenizer.encode_line(text), *([eos] if text == "ends" else []))

    sampler = FakeSampler(codec, 3, respond)
    generate = teacher_local.sampled(
        sampler, codec.tokenizer, ends=("[[A]]", "[[B]]"), max_tokens=12
    )
    answers = dict(generate(list(texts)))
    assert [len(batch.rows) for batch in sampler.batches] == [2, 2]
    assert [answers[n].finished for n in range(4)] == [True, False, True, True]
    assert answers[0].text == "Check [[A]]" and answers[3].text == "ends"
    assert answers[1].text.startswith("no end") and len(answers[1].text) < 38
    assert answers[2].text == "[[B]]"
    size = len(codec.tokenizer.encode_prompt("5*3+1\n"))
    assert answers[3].tokens == size + len(codec.tokenizer.encode_line("ends")) + 1
    # The two prompts of a problem follow each other in one slot.
    assert [row.context + row.prompt for row in sampler.asked] == [
        "8*7+4\nA\n",
        "5*3+1\nC\n",
        "8*7+4\nB\n",
        "5*3+1\n",
    ]


def test_prompts_of_a_model_of_ours_are_encoded_as_asked(codec):
    asked = []

    def encode(prompt):
        asked.append(prompt)
        return codec.line("5*3+1\n")

    sampler = FakeSampler(codec, 1, lambda *_: (codec.tokenizer.eos_id,))
    generate = teacher_local.sampled(
        sampler, codec.tokenizer, max_tokens=4, encode=encode
    )
    assert [answer.text for _, answer in generate(["a</s>", "b"])] == ["", ""]
    assert asked == ["a</s>", "b"]
    assert [row.context + row.prompt for row in sampler.asked] == ["5*3+1\n"] * 2
    # The codec of a run encodes the names of special tokens as text.
    assert codec.tokenizer.eos_id not in codec.message("a</s>")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_what_is_asked_beside_it(
    codec, one_device, quick_compiles, temperature
):
    model = small_decoder(codec.tokenizer.vocab_size, layers=1)
    params = random_parameters(lm.abstract_params(model))

    def answers(slots, prompts):
        sampler = Sampler(model, params, one_device, slots, 60)
        generate = teacher_local.sampled(
            sampler, codec.tokenizer, temperature=temperature, max_tokens=9
        )
        found = dict(generate(prompts))
        return [found[index] for index in range(len(prompts))]

    prompts = [f"{digit}{digit % 3 * '*7+4'}\nA\n" for digit in range(5)]
    prompts.append("0\nB\n")
    two = answers(2, prompts)
    assert answers(5, prompts) == two == answers(2, prompts[::-1])[::-1]
    assert len({answer.text for answer in two}) > 3
    sizes = [len(codec.tokenizer.encode_prompt(prompt)) for prompt in prompts]
    written = [answer.tokens - size for answer, size in zip(two, sizes, strict=True)]
    for answer, count in zip(two, written, strict=True):
        assert 1 <= count <= 9 and (count == 9 or answer.finished)
    with pytest.raises(ValueError, match="a context of .* at most 60"):
        answers(2, ["1" * 70])
