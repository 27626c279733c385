"""The teacher behind a real server: faults, budgets, and runs that are killed."""

import dataclasses
import email.utils
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from fakes import teacher_options
from teacher_server import completion, serving

from stepjax.initial_data import teacher
from stepjax.initial_data.teacher_answers import Answer
from stepjax.records import write_jsonl

ROOT = pathlib.Path(__file__).parents[2]
KEY = "sk-secret-0123"
OPTIONS = teacher_options(backend="http")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with serving() as state:
        yield state


class Client:
    """A teacher of the server, with what it said and counted."""

    def __init__(self, server, path, backoff=0.01, **changed):
        self.said, self.done = [], []
        options = dataclasses.replace(OPTIONS, **{"url": server.url} | changed)
        self.ask = teacher.make_teacher(
            options,
            path,
            on_done=self.done.append,
            say=self.said.append,
            backoff=backoff,
        )


@pytest.fixture
def client(server, tmp_path):
    def make(**changed):
        return Client(server, tmp_path / "kept", **changed)

    return make


def kept(tmp_path):
    return [json.loads(line) for line in (tmp_path / "kept").open()]


def prompts(count):
    return [f"prompt {number}" for number in range(count)]


# Without faults.


def test_a_request_is_one_message_of_the_user(server, client):
    asked = client(temperature=0.25, max_tokens=7, concurrency=1)
    assert asked.ask(["Wie\n«geht» es?\u2028"]) == [
        Answer("to Wie\n«geht» es?\u2028", True, 10)
    ]
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.body == {
        "model": "M",
        "messages": [{"role": "user", "content": "Wie\n«geht» es?\u2028"}],
        "temperature": 0.25,
        "max_tokens": 7,
    }
    assert asked.said == []


def test_answers_are_in_the_order_of_the_prompts(server, client, tmp_path):
    asked = client()
    texts = prompts(30)
    random.Random(0).shuffle(texts)
    answers = asked.ask([*texts, texts[3]])
    assert [a.text for a in answers] == [f"to {p}" for p in [*texts, texts[3]]]
    assert server.counts == dict.fromkeys(texts, 1)
    assert asked.done[0] == 0 and sum(asked.done) == 31
    rows = kept(tmp_path)
    assert [sorted(row) for row in rows] == [
        ["finished", "key", "model", "prompt", "sha256", "text", "tokens"]
    ] * 30
    assert {row["model"] for row in rows} == {"M"}


def test_as_many_requests_as_stated_are_under_way(server, client):
    server.delay = 0.05
    client(concurrency=3).ask(prompts(9))
    assert server.most == 3


@pytest.mark.parametrize(
    "body, expected",
    [
        (completion("cut", finish="length", total=9), Answer("cut", False, 9)),
        (completion("x", finish="content_filter"), Answer("x", False, 10)),
        (completion("x", finish="eos_token"), Answer("x", True, 10)),
        (completion(None), Answer("", True, 10)),
        (completion("half \ud800"), Answer("half ?", True, 10)),
        # Without a count, as many tokens as there can be: 1 + 64 of the prompt, 3.
        (completion("abc") | {"usage": None}, Answer("abc", True, 68)),
        (completion("abc", total="9"), Answer("abc", True, 68)),
        (completion("abc", total=float("nan")), Answer("abc", True, 68)),
        (completion("abc", total=-1), Answer("abc", True, 68)),
    ],
)
def test_what_an_answer_says(server, client, body, expected):
    server.answer = lambda prompt: body
    assert client().ask(["p"]) == [expected]


def test_without_a_key_none_is_sent_and_it_is_said(server, client, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY")
    asked = client()
    asked.ask(["p"])
    assert "authorization" not in server.seen[0].headers
    (line,) = asked.said
    assert "'TEACHER_KEY' is not set" in line and server.url in line


def test_requests_keep_the_rate_also_when_they_are_repeated(server, client):
    server.faults["prompt 1"] = [(500, {}, b"")]
    client(requests_per_minute=600).ask(prompts(6))
    times = [seen.at for seen in server.seen]
    assert len(times) == 7 and times[-1] - times[0] > 0.3  # about 6 * 0.1


# Faults that pass.

PASSING = {
    "408": (408, {}, b"late"),
    "429": (429, {}, b'{"error": {"message": "slow down"}}'),
    "429 with a wait": (429, {"retry-after": "0"}, b""),
    "429 with nonsense": (429, {"retry-after": "soon"}, b""),
    "500": (500, {}, b"oops"),
    "503": (503, {}, b""),
    "529": (529, {}, b""),
    "cut-off JSON": (200, {}, b'{"choices": [{"message": {"content": "x'),
    "not JSON": (200, {"content-type": "application/json"}, b"<html>"),
    "not UTF-8": (200, {}, b'"\xff"'),
    "empty body": (200, {}, b""),
    "deep JSON": (200, {}, b"[" * 100_000),
    "a list": (200, {}, b"[]"),
    "an error": (200, {}, b'{"error": {"message": "overloaded"}}'),
    "no choices": (200, {}, b'{"choices": []}'),
    "no message": (200, {}, b'{"choices": [{"text": "x"}]}'),
    "a message of parts": (200, {}, b'{"choices": [{"message": {"content": [1]}}]}'),
    "broken gzip": (200, {"content-encoding": "gzip"}, b"no gzip"),
    "dropped half-way": "drop",
    "too slow": 10.0,
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_asked_again(server, client, tmp_path, fault):
    server.faults["prompt 1"] = [PASSING[fault]] * 2
    timeout = 0.3 if fault == "too slow" else 5.0
    asked = client(timeout=timeout)
    answers = asked.ask(prompts(4))
    assert [a.text for a in answers] == [f"to {p}" for p in prompts(4)]
    assert server.counts == dict.fromkeys(prompts(4), 1) | {"prompt 1": 3}
    assert len(kept(tmp_path)) == 4 and sum(asked.done) == 4


def test_waits_double(server, client):
    server.faults["p"] = [(500, {}, b"")] * 3
    client(backoff=0.1).ask(["p"])
    times = [seen.at for seen in server.seen]
    for number, (before, after) in enumerate(zip(times, times[1:], strict=False)):
        assert after - before > 0.1 * 2**number - 0.01
    assert times[-1] - times[0] < 2.0  # 0.7 and at most 0.3 of jitter


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_all_requests_wait_as_long_as_the_server_asks(server, client, form):
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2)
    server.faults["prompt 0"] = [(429, {"retry-after": wait}, b"")]
    client(concurrency=1).ask(prompts(2))
    first, second, third = server.seen
    assert [s.prompt for s in server.seen] == ["prompt 0", "prompt 0", "prompt 1"]
    assert 0.9 < second.at - first.at < 5


def test_a_server_that_cannot_be_reached_is_tried_again(client):
    asked = client(url="http://127.0.0.1:9/v1", retries=2)
    start = time.monotonic()
    with pytest.raises(ValueError, match="127.0.0.1:9.*ConnectError.*failed 3 times"):
        asked.ask(["p"])
    assert time.monotonic() - start > 0.03


# Faults that do not pass.


def test_a_server_that_does_not_recover_stops_the_run_and_loses_nothing(
    server, client, tmp_path
):
    server.faults["prompt 5"] = [(500, {}, b"broken " * 100)] * 4
    asked = client(concurrency=2)
    with pytest.raises(ValueError) as caught:
        asked.ask(prompts(40))
    rows = kept(tmp_path)
    message = str(caught.value)
    assert server.url in message and "status 500, 'broken" in message
    assert "failed 4 times" in message and len(message) < 1000
    assert f"{40 - len(rows)} of 40 requests are not answered yet" in message
    assert str(tmp_path / "kept") in message
    stored = {row["prompt"] for row in rows}
    assert 5 <= len(stored) < 40 and sum(asked.done) == len(stored)
    before = server.counts
    assert len(client().ask(prompts(40))) == 40
    assert server.counts - before == dict.fromkeys(set(prompts(40)) - stored, 1)


@pytest.mark.parametrize(
    "status, body, remedy",
    [
        (400, {"error": {"message": "too long"}}, "teacher.max_tokens"),
        (401, {"error": {"message": f"bad key {KEY}"}}, "variable 'TEACHER_KEY'"),
        (403, {"detail": "no"}, "variable 'TEACHER_KEY'"),
        (404, {"error": "no such model"}, "often ends with /v1"),
        (422, [KEY], "teacher.model"),
        (307, None, "teacher.url"),
    ],
)
def test_a_refused_request_is_not_repeated(
    server, client, tmp_path, status, body, remedy
):
    server.faults["p"] = [(status, {}, json.dumps(body).encode())]
    with pytest.raises(ValueError) as caught:
        client().ask(["p"])
    message = str(caught.value)
    assert f"status {status}" in message and remedy in message and server.url in message
    assert len(server.seen) == 1 and KEY not in message
    if status == 401:
        assert "bad key [the key]" in message
    assert "sk-secret" not in (tmp_path / "kept").read_text()


def test_after_a_failure_nothing_more_is_sent_and_the_answers_under_way_are_kept(
    server, client, tmp_path
):
    server.delay = 0.3
    server.faults["prompt 3"] = [(401, {}, b"no")]
    with pytest.raises(ValueError, match="status 401.*37 of 40 requests"):
        client(concurrency=4).ask(prompts(40))
    assert server.counts == dict.fromkeys(prompts(4), 1)
    assert sorted(row["prompt"] for row in kept(tmp_path)) == prompts(3)


def test_a_server_that_asks_for_a_long_wait_stops_the_run(server, client):
    server.faults["p"] = [(429, {"retry-after": "3600"}, b'{"error": "quota"}')]
    with pytest.raises(ValueError, match="quota.*wait 3,600 s"):
        client().ask(["p"])


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"model": ""}, "teacher.model is empty"),
        ({"url": ""}, "expected an address"),
        ({"url": "localhost:8000/v1"}, "expected an address"),
        ({"url": "ftp://host/v1"}, "expected an address"),
        ({"url": "http://[::1"}, "is no address"),
        ({"url": f"http://user:{KEY}@host/v1"}, "a password"),
        ({"url": f"http://host/v1?key={KEY}"}, "a query"),
    ],
)
def test_an_address_that_cannot_be_asked(client, changed, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        client(**changed)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", [f"{KEY} x", f"{KEY}\nx", f"{KEY}ä"])
def test_a_key_that_no_header_can_hold_is_not_shown(client, monkeypatch, key):
    monkeypatch.setenv("TEACHER_KEY", key)
    with pytest.raises(ValueError, match="'TEACHER_KEY' holds characters") as caught:
        client()
    assert KEY not in str(caught.value)


def test_a_key_with_a_newline_at_its_end_is_used_without_it(
    server, client, monkeypatch
):
    monkeypatch.setenv("TEACHER_KEY", f"{KEY}\n")
    client().ask(["p"])
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


# The token budget.


def test_the_budget_is_never_exceeded_and_what_is_left_is_said(
    server, client, tmp_path
):
    # A prompt of 8 bytes may take 8 + 64 + 100 tokens; each answer takes 150.
    server.answer = lambda prompt: completion("x", total=150)
    texts = prompts(10)
    with pytest.raises(ValueError) as caught:
        client(token_budget=1000).ask(texts)
    rows = kept(tmp_path)
    assert sum(row["tokens"] for row in rows) == 900 and len(server.seen) == 6
    message = str(caught.value)
    assert "teacher.token_budget=1,000 is reached: 900 tokens are spent" in message
    assert "may take up to 172" in message and "4 of 10 requests" in message
    # Earlier runs count. The last four fit exactly: 900 + 3 * 150 + 172.
    with pytest.raises(ValueError, match="900 tokens are spent.*4 of 4 requests"):
        client(token_budget=1071).ask(texts)
    with pytest.raises(ValueError, match="1,350 tokens are spent.*1 of 4 requests"):
        client(token_budget=1521).ask(texts)
    assert len(server.seen) == 9
    assert len(client(token_budget=1522).ask(texts)) == 10
    assert server.counts == dict.fromkeys(texts, 1)


# Runs that are killed.

PROGRAM = """
import json, pathlib, signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background
from stepjax import records
from stepjax.initial_data import teacher
options, folder, count = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), 120
options = types.SimpleNamespace(**options)
ask = teacher.make_teacher(options, folder / "kept", backoff=0.01)
prompts = [f"prompt {number}" for number in range(count)]
rows = [answer._asdict() for answer in ask(prompts)]
records.write_jsonl(folder / "result.jsonl", rows)
"""


def start(server, folder):
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TEACHER_KEY": ""}
    options = json.dumps(vars(OPTIONS) | {"url": server.url})
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, options, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_requests(server, count):
    limit = time.monotonic() + 60
    while len(server.seen) < count:
        assert time.monotonic() < limit
        time.sleep(0.002)


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


@pytest.fixture
def unbroken(server, client, tmp_path):
    """The result of a run that nobody kills."""
    rows = [answer._asdict() for answer in client().ask(prompts(120))]
    assert server.counts == dict.fromkeys(prompts(120), 1)
    server.seen.clear()
    write_jsonl(tmp_path / "unbroken", rows)
    return (tmp_path / "unbroken").read_bytes()


def test_a_run_that_is_killed_five_times_asks_for_no_kept_answer_again(
    server, tmp_path, unbroken
):
    rng = random.Random(14)
    server.delay, folder = 0.02, tmp_path / "killed"
    stored, lost = set(), 0
    for _ in range(5):
        before = len(server.seen)
        process = start(server, folder)
        wait_for_requests(server, before + rng.randrange(1, 24))
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
        time.sleep(0.05)  # answers that are under way still reach the dead socket
        asked = {seen.prompt for seen in server.seen[before:]}
        assert not asked & stored
        whole = (folder / "kept").read_bytes().rpartition(b"\n")[0].splitlines()
        now_stored = {json.loads(line)["prompt"] for line in whole}
        assert stored <= now_stored
        assert 0 <= len(asked - now_stored) <= OPTIONS.concurrency
        lost += len(asked - now_stored)
        stored = now_stored
    before = len(server.seen)
    finish(start(server, folder))
    assert not {seen.prompt for seen in server.seen[before:]} & stored
    assert 0 < len(stored) < 120 and lost > 0
    assert sum(server.counts.values()) == 120 + lost
    assert (folder / "result.jsonl").read_bytes() == unbroken


def test_a_run_that_is_stopped_keeps_the_answers_under_way(server, tmp_path, unbroken):
    rng = random.Random(15)
    server.delay, folder = 0.05, tmp_path / "stopped"
    for number in (signal.SIGTERM, signal.SIGINT):
        before = len(server.seen)
        process = start(server, folder)
        wait_for_requests(server, before + rng.randrange(4, 20))
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == -number, errors
        assert "have 20 s to arrive" in output
        assert len((folder / "kept").read_bytes().splitlines()) == len(server.seen)
    finish(start(server, folder))
    assert server.counts == dict.fromkeys(prompts(120), 1)
    assert (folder / "result.jsonl").read_bytes() == unbroken


def test_the_second_signal_ends_the_waiting(server, tmp_path):
    server.delay = 3.0
    process = start(server, tmp_path / "stopped")
    wait_for_requests(server, 4)
    began = time.monotonic()
    process.terminate()
    time.sleep(0.2)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM and time.monotonic() - began < 2.5
    assert len(server.seen) == 4
