"""What a person sees of a run: bars, lines, log.txt, metrics on disk."""

import datetime
import io
import json
import math
import os
import queue
import re
import threading

import pytest
from rich.cells import cell_len
from rich.console import Console
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from stepjax.run.monitor import Monitor
from stepjax.run.progress import Clock, Progress, usage_line

DATE = "2026-01-05, stepjax 0.1.0"


class FakeClock(Clock):
    """A clock that stands still until `tick` lets the time of one wait pass.

    It shows 14:03:00 when it stands at 0 s.
    """

    def __init__(self):
        self.at, self.waits = 0.0, []  # seconds; what was waited for
        self._asked, self._steps = queue.Queue(), threading.Semaphore(0)

    def now(self):
        start = datetime.datetime(2026, 1, 5, 14, 3)
        return start + datetime.timedelta(seconds=self.at)

    def seconds(self):
        return self.at

    def wait(self, over, seconds):
        self._asked.put(seconds)
        while not over.wait(0.001):
            if self._steps.acquire(blocking=False):
                return False
        self._asked.get()
        return True

    def tick(self):
        """Moves to the end of the wait; returns when the thread waits again."""
        self.waits.append(self._asked.get(timeout=60))
        self.at += self.waits[-1]
        self._steps.release()
        self._asked.put(self._asked.get(timeout=60))


def monitor_of(folder, clock=None, width=0, **options):
    """A monitor and what it prints: in a terminal of this width, or into a file."""
    printed = io.StringIO()
    console = Console(
        file=printed, force_terminal=width > 0, width=width or 80, _environ={}
    )
    clock = clock or FakeClock()
    return Monitor(folder, console=console, clock=clock, **options), printed


def threads():
    return [t for t in threading.enumerate() if t.name == "stepjax-monitor"]


# Without a terminal.


def test_a_stage_prints_a_line_every_30_seconds_and_one_at_its_end(tmp_path):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock)
    with monitor.progress("M1 sft/judge", 2400, "update") as move:
        clock.tick()
        clock.at += 17  # the first updates are there after 20 s
        move(1500, "loss 0.7000")
        clock.at -= 17
        clock.tick()
        move(320, "loss 0.0213")
        clock.tick()
        clock.at += 1
        move(580)
    assert clock.waits == [3, 30, 30]
    lines = [
        DATE,
        "14:03:03 M1 sft/judge  0/2400 updates  3 s so far, compiling or first batch",
        "14:03:33 M1 sft/judge  1500/2400 updates  45.5/s  20 s left  loss 0.7000",
        "14:04:03 M1 sft/judge  1820/2400 updates  28.9/s  20 s left  loss 0.0213",
        "14:04:04 M1 sft/judge  2400/2400 updates  37.5/s  done in 1 min 04 s"
        "  loss 0.0213",
    ]
    assert printed.getvalue().splitlines() == lines
    assert monitor.log_path == tmp_path / "log.txt"
    assert monitor.log_path.read_text().splitlines() == lines
    assert not threads()


def test_each_line_is_flushed_at_once(tmp_path):
    class File(io.StringIO):
        seen = ()

        def flush(self):
            self.seen = (*self.seen, self.getvalue())

    monitor, _ = monitor_of(tmp_path)
    monitor.console.file = File()
    for text in ("one", "two"):
        monitor.say(text)
        assert monitor.console.file.seen[-1].endswith(f"14:03:00 {text}\n")


def test_a_slow_first_unit_is_explained_every_30_seconds(tmp_path):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock)
    with monitor.progress("M1 search", 400, "problem") as move:
        for _ in range(4):
            clock.tick()
        move(400)
    lines = printed.getvalue().splitlines()[1:]
    head, tail = "M1 search  0/400 problems  ", " so far, compiling or first batch"
    assert lines == [
        f"14:03:03 {head}3 s{tail}",
        f"14:03:33 {head}33 s{tail}",
        f"14:04:03 {head}1 min 03 s{tail}",
        f"14:04:33 {head}1 min 33 s{tail}",
        "14:04:33 M1 search  400/400 problems  4.3/s  done in 1 min 33 s",
    ]


def test_what_an_earlier_process_did_does_not_count_for_the_rate(tmp_path):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock)
    with monitor.progress("M2 dpo", 112, "update", 100) as move:
        move(2, "loss 0.5")
        clock.at = 4
        move(0)
        clock.tick()
        move(10)
    with monitor.progress("M2 dpo", 112, "update", 112):
        pass
    assert printed.getvalue().splitlines()[1:] == [
        "14:03:07 M2 dpo  102/112 updates  17.1/min  35 s left  loss 0.5",
        "14:03:07 M2 dpo  112/112 updates  1.7/s  done in 7 s  loss 0.5",
        "14:03:07 M2 dpo  112/112 updates  done in 0 s",
    ]


def test_a_stage_that_needs_less_than_its_total_says_so(tmp_path):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock)
    with monitor.progress("M1 sft/judge", 2400, "update") as move:
        clock.at = 2
        move(1080, "loss 0.0086")
    last = "M1 sft/judge  1080/2400 updates  540/s  done early, in 2 s  loss 0.0086"
    assert printed.getvalue().splitlines()[-1] == f"14:03:02 {last}"


@pytest.mark.parametrize("width", [0, 80])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_stage_that_is_interrupted_says_so_and_leaves_no_thread(
    tmp_path, error, width
):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock, width)
    with pytest.raises(error):
        with monitor.progress("M1 search", 10, "problem") as move:
            assert len(threads()) == 1
            clock.at = 2
            move(4)
            raise error
    last = "14:03:02 M1 search  4/10 problems  2.0/s  stopped after 2 s"
    assert monitor.log_path.read_text().splitlines() == [DATE, last]
    assert (last in printed.getvalue()) == (width == 0)
    with pytest.raises(error):
        with monitor.during("loading M1"):
            raise error
    assert not threads()


def test_a_silence_is_explained_once_it_lasts_three_seconds(tmp_path):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock)
    with monitor.during("loading M1"):
        clock.at = 2.9
    assert not printed.getvalue()
    with monitor.during("saving M1"):
        clock.tick()
        clock.tick()
    assert printed.getvalue().splitlines() == [
        DATE,
        "14:03:05 saving M1, 3 s so far",
        "14:03:35 saving M1, 33 s so far",
    ]
    assert not monitor.log_path.exists()  # it is for those who wait
    assert not threads()


def test_a_silence_with_a_count_says_how_much_is_left(tmp_path):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock)
    with monitor.during("counting", 4000) as advance:
        clock.tick()
        advance(1100)
        clock.tick()
    assert printed.getvalue().splitlines()[1:] == [
        "14:03:03 counting, 3 s so far",
        "14:03:33 counting, 33 s so far: 1,100 of 4,000, 1 min 27 s left",
    ]


def test_the_machine_s_clock_ends_a_wait_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("stepjax.run.monitor._QUIET_SECONDS", 0.001)
    printed, said = io.StringIO(), threading.Event()
    printed.flush = said.set
    monitor = Monitor(tmp_path, console=Console(file=printed))
    with monitor.progress("M1 search", 2, "problem"):
        assert said.wait(60)
    lines = printed.getvalue().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d, stepjax 0\.1\.0", lines[0])
    hint = "0/2 problems  0 s so far, compiling or first batch"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d M1 search  {hint}", lines[1])
    assert not threads()


# log.txt.


def test_log_txt_dates_each_day_and_a_continued_run_appends(tmp_path):
    clock = FakeClock()
    monitor, _ = monitor_of(tmp_path, clock)
    monitor.say("one")
    clock.at = 10 * 3600
    monitor.say("two")
    monitor.say("three")
    again, printed = monitor_of(tmp_path, clock)
    again.say("four → five")
    assert monitor.log_path.read_text(encoding="utf-8").splitlines() == [
        DATE,
        "14:03:00 one",
        "2026-01-06, stepjax 0.1.0",
        "00:03:00 two",
        "00:03:00 three",
        "2026-01-06, stepjax 0.1.0",
        "00:03:00 four → five",
    ]
    assert printed.getvalue().splitlines()[-1] == "00:03:00 four → five"


def test_what_is_announced_is_kept_once_something_happens(tmp_path):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock)
    monitor.announce("one")
    monitor.announce("two")
    assert printed.getvalue().splitlines() == [DATE, "14:03:00 one", "14:03:00 two"]
    assert not monitor.log_path.exists()
    clock.at += 5
    monitor.say("three")
    monitor.say("four")
    assert monitor.log_path.read_text().splitlines() == [
        DATE,
        "14:03:00 one",
        "14:03:00 two",
        "14:03:05 three",
        "14:03:05 four",
    ]
    quiet, said = monitor_of(tmp_path / "quiet", clock, quiet=True)
    quiet.announce("one")
    assert not said.getvalue() and not quiet.log_path.exists()


def test_a_long_sentence_is_one_line_in_a_file(tmp_path):
    monitor, printed = monitor_of(tmp_path)
    monitor.say("a long sentence [with brackets] " * 9)
    assert len(printed.getvalue().splitlines()) == 2
    assert printed.getvalue() == monitor.log_path.read_text()


def test_only_the_first_host_prints_and_writes(tmp_path, capsys):
    monitor, printed = monitor_of(tmp_path, quiet=True)
    monitor.say("a sentence")
    monitor.log("sft", "M1", 1, {"loss": 0.5})
    with monitor.during("loading M1"), monitor.progress("M1 a", 2, "row") as move:
        move(2, "a note")
        assert not threads()
    assert "│ a " in monitor.table("a title", [{"b": "a"}])
    assert not printed.getvalue() and not list(tmp_path.iterdir())
    said = capsys.readouterr()
    assert not said.out and not said.err


# In a terminal.

STAGES = [  # name, total, done, unit, note, seconds
    ("M1 sft/judge", 2400, 1820, "update", "loss 0.0213", 24),
    ("M4 eval training", 1_000_000, 820_000, "problem", "loss 0.0213", 3600),
    ("M4 eval training", 1_000_000, 0, "problem", "", 36),
    ("M3 search", 3000, 2999, "problem", "", 100_000),
    ("M2 reference", 177, 177, "batch", "", 3),
    ("M2 dpo", 70, 1, "update", "loss 0.6931", 100),
]


def drawn(stage, width):
    """The lines that a terminal of this width shows for a bar."""
    console = Console(width=width, file=io.StringIO(), _environ={})
    console.print(stage.bar(width))
    return console.file.getvalue().splitlines()


def stage_of(name, total, done, unit, note, seconds):
    clock = FakeClock()
    stage = Progress(name, total, unit, 0, clock)
    stage.advance(done, note)
    clock.at = seconds
    return stage


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("given", STAGES)
def test_a_bar_is_one_whole_line(given, width):
    name, total, done, unit, note, _ = given
    (line,) = drawn(stage_of(*given), width)
    assert cell_len(line) <= width and "…" not in line
    assert line.startswith(name) and f"{done}/{total}" in line and note in line
    if width >= 80:
        assert f" {unit}" in line and re.search(r" \d+:\d\d:\d\d( |$)", line)
        rated = re.search(r" \d+(\.\d)?/(s|min|h) ", line)
        left = re.search(r" \d+:\d\d:\d\d left( |$)", line)
        assert (rated and left) if done else "compiling or first batch" in line
    if width >= 120 and done > total / 20:
        assert line.count("━") + line.count("╸") >= 1


def test_bars_at_80_columns():
    assert [drawn(stage_of(*given), 80)[0].rstrip() for given in STAGES] == [
        "M1 sft/judge       ━━━━━━━━    1820/2400 updates 75.8/s 0:00:08 left "
        "loss 0.0213",
        "M4 eval training ━━━━━╸   820000/1000000 problems 228/s 0:13:10 left "
        "loss 0.0213",
        "M4 eval training             0/1000000 problems 0:00:36 compiling or "
        "first batch",
        "M3 search          ━━━━━━━━━━━━━━━━━━━━╸ 2999/3000 problems 1.8/min "
        "0:00:33 left",
        "M2 reference       ━━━━━━━━━━━━━━━━━━━━━━━━ 177/177 batches 59.0/s "
        "0:00:00 left",
        "M2 dpo                              1/70 updates 36.0/h 1:55:00 left "
        "loss 0.6931",
    ]


def test_a_terminal_shows_a_bar_and_the_lines_go_to_log_txt(tmp_path):
    clock = FakeClock()
    monitor, printed = monitor_of(tmp_path, clock, width=80)
    with monitor.progress("M1 search", 10, "problem", 4) as move:
        clock.tick()
        move(2, "a note")
        monitor.say("a sentence")
        move(4)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.getvalue())
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert "a sentence" in lines
    assert re.fullmatch(
        r"M1 search +━+ 10/10 problems 2\.0/s 0:00:03 a note", lines[-1]
    )
    assert monitor.log_path.read_text().splitlines() == [
        DATE,
        "14:03:03 M1 search  4/10 problems  3 s so far, compiling or first batch",
        "14:03:03 a sentence",
        "14:03:03 M1 search  10/10 problems  2.0/s  done in 3 s  a note",
    ]
    assert "14:03" not in text
    assert not (tmp_path / "tensorboard").exists()  # nothing was logged


def test_a_dumb_terminal_and_ci_get_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as some CI does; the file is no terminal
    printed = io.StringIO()
    monkeypatch.setattr("sys.stderr", printed)
    Monitor(tmp_path, clock=FakeClock()).say("one")
    dumb = Console(file=printed, force_terminal=True, _environ={"TERM": "dumb"})
    Monitor(tmp_path, clock=FakeClock(), console=dumb).say("two")
    lines = [DATE, "14:03:00 one", DATE, "14:03:00 two"]
    assert printed.getvalue().splitlines() == lines


# How busy a search was.


def test_usage_in_words():
    useful = {"candidates": 0.7123, "judgments": 0.0949}
    assert usage_line([64, 64, 60], 64, useful) == (
        "search: 98% of slots busy; useful decoding: candidates 71%, judgments 9%"
    )
    assert usage_line([3], 8, {}) == "search: 38% of slots busy"


# Metrics on disk.


def test_metrics_of_a_stage_run_again_replace_its_own(tmp_path):
    monitor = Monitor(tmp_path)
    for stage, model, step in [("sft", "M1", 5), ("sft", "M1", 10), ("sft", "M1", 15)]:
        monitor.log(stage, model, step, {"loss": step / 10})
    monitor.log("dpo", "M2", 10, {"loss": 0.5, "name": "x"})
    monitor.log("dpo", "M3", 10, {"loss": math.inf})
    with open(monitor.path, "a") as file:
        file.write('{"stage": "dpo", "mod')  # a kill in the middle of a line
    monitor.restart("sft", "M1", 10)
    places = [(row["stage"], row["model"], row["step"]) for row in monitor.rows()]
    kept = [("sft", "M1", 5), ("sft", "M1", 10), ("dpo", "M2", 10), ("dpo", "M3", 10)]
    assert places == kept
    monitor.restart("dpo", "M2")
    assert [row["step"] for row in monitor.rows()] == [5, 10, 10]
    monitor.log("sft", "M1", 15, {"loss": 1.5})
    assert monitor.rows()[-1] == {
        "stage": "sft",
        "model": "M1",
        "step": 15,
        "loss": 1.5,
    }
    assert json.loads(monitor.path.read_text().splitlines()[2])["loss"] == math.inf
    assert not list(tmp_path.glob("*.tmp"))


def test_broken_lines_of_metrics_are_left_out_and_named(tmp_path, capsys):
    monitor = Monitor(tmp_path)
    good = '{"stage": "sft", "model": "M1", "step": %d}'
    lines = [
        good % 5,
        "{}",
        "[1]",
        "\udcff",
        good % 10,
        '{"stage": "dpo"',
        "[" * 99_999,
    ]
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    monitor.path.write_bytes(text)
    assert [row["step"] for row in monitor.rows()] == [5, 10]
    monitor.restart("dpo", "M2")
    said = capsys.readouterr().err
    assert "metrics.jsonl: broken lines are left out: 2, 3, 4, 6, 7\n" in said
    assert monitor.path.read_text() == f"{good % 5}\n{good % 10}\n"
    monitor.restart("dpo", "M2")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_logs_that_cannot_be_written_stop_nothing_and_are_named_once(
    tmp_path, capsys, make
):
    for name in ("metrics.jsonl", "log.txt"):
        make(tmp_path / name)
    (tmp_path / "tensorboard").write_text("no folder")
    monitor = Monitor(tmp_path)
    for step in (1, 2):
        monitor.say(f"line {step}")
        monitor.restart("dpo", "M2")
        monitor.log("dpo", "M2", step, {"loss": 0.5})
        monitor.log_text("eval", step, "text")
    monitor.close()
    said = capsys.readouterr().err.splitlines()
    assert sum("cannot be written" in line for line in said) == 3
    for name in ("metrics.jsonl", "log.txt", "tensorboard"):
        (line,) = [line for line in said if f"/{name} cannot be written (" in line]
        assert line.endswith("); the run goes on")
    assert sum("line 1" in line or "line 2" in line for line in said) == 2


def tensorboard_events(folder):
    """Yields the events of the one event file in the folder.

    A record of the file is the length of its data (8 bytes, little-endian), a checksum
    (4 bytes), the data, and a checksum (4 bytes).
    """
    (path,) = folder.iterdir()
    with open(path, "rb") as file:
        while length := file.read(8):
            file.read(4)
            data = file.read(int.from_bytes(length, "little"))
            file.read(4)
            yield event_pb2.Event.FromString(data)


def tensorboard_scalars(folder):
    """Returns (tag, step) → value of the one event file in the folder."""
    return {
        (value.tag, event.step): value.simple_value
        for event in tensorboard_events(folder)
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    }


def test_finite_numbers_are_tensorboard_scalars(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.log("sft/judge", "M1", 20, {"loss": 0.25, "grad_norm": 3})
    monitor.log("sft/judge", "M1", 40, {"loss": 0.125, "grad_norm": math.nan})
    margins = {"rewards/margins": -1.5, "name": "x"}
    monitor.log("dpo", "M2", 8, margins, speeds={"tokens_per_second": 512.0})
    for number, rate in ((2, 0.75), (3, 0.875)):  # one curve over the models
        measured = {"accuracy": rate, "low": 0.5, "high": 1.0, "count": 9}
        measured |= {"left_out": 1, "judge_sampled_count": 2}
        monitor.log("eval/test_greedy", f"M{number}", number, measured)
    assert "tokens_per_second" not in monitor.rows()[2]
    expected = {
        ("sft/judge/M1/loss", 20): 0.25,
        ("sft/judge/M1/grad_norm", 20): 3.0,
        ("sft/judge/M1/loss", 40): 0.125,
        ("dpo/M2/rewards/margins", 8): -1.5,
        ("dpo/M2/tokens_per_second", 8): 512.0,
        ("eval/test_greedy/accuracy", 2): 0.75,
        ("eval/test_greedy/accuracy", 3): 0.875,
    }
    monitor.close()
    assert tensorboard_scalars(tmp_path / "tensorboard") == expected


def test_every_metric_of_a_run_is_a_tensorboard_scalar(finished):
    scalars = tensorboard_scalars(finished / "tensorboard")
    rows = Monitor(finished).rows()
    for row in rows:
        for name in row.keys() - {"stage", "model", "step"}:
            own = row["stage"].startswith(("sft/", "dpo"))
            place = f"{row['stage']}/{row['model']}" if own else row["stage"]
            value = scalars.get((f"{place}/{name}", row["step"]))
            if name in ("low", "high", "left_out") or name.endswith("count"):
                assert value is None
            else:
                assert value == pytest.approx(row[name], rel=1e-6)
    assert len(rows) > 20
    rates = [n for tag, n in scalars if tag == "eval/test_greedy/accuracy"]
    assert sorted(rates) == [0, 1, 2, 3]  # one curve over M0 ... M3
    assert scalars["dpo/M2/learning_rate", 5] == pytest.approx(1e-3)
    assert scalars["dpo/M2/tokens_per_second", 5] > 0


def test_settings_and_texts_are_in_tensorboard(tmp_path):
    config = {"seed": 3, "dpo": {"beta": 0.5, "updates": [], "nested": {"on": True}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monitor = Monitor(tmp_path)
    monitor.log_text("eval/test_greedy", 2, "a: right\n    5*3\n    <b> **x**")
    monitor.close()
    texts, settings = {}, {}
    for event in tensorboard_events(tmp_path / "tensorboard"):
        for value in event.summary.value:
            if value.tag.endswith("/text_summary"):
                (text,) = value.tensor.string_val
                texts[value.tag, event.step] = text.decode()
            if value.tag == "_hparams_/session_start_info":
                content = value.metadata.plugin_data.content
                started = HParamsPluginData.FromString(content).session_start_info
                settings = {
                    name: getattr(field, field.WhichOneof("kind"))
                    for name, field in started.hparams.items()
                }
    # As code, so that TensorBoard reads no markup.
    shown = "    a: right\n        5*3\n        <b> **x**\n"
    assert texts == {("eval/test_greedy/text_summary", 2): shown}
    assert settings == {
        "seed": 3,
        "dpo.beta": 0.5,
        "dpo.updates": "[]",
        "dpo.nested.on": True,
    }
