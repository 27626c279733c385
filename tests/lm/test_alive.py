"""Signs of life, lost hosts, and the unit after which all hosts stop."""

import signal
import threading
import time

import pytest

from stepjax import interrupts
from stepjax.lm import alive


class Store:
    """What `jax.distributed` keeps for all hosts."""

    def __init__(self):
        self.kept, self.lock = {}, threading.Lock()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.lock:
            if key in self.kept and not allow_overwrite:
                raise RuntimeError("ALREADY_EXISTS")
            self.kept[key] = value

    def key_value_dir_get(self, folder):
        with self.lock:
            return [item for item in self.kept.items() if item[0].startswith(folder)]


class Lost(list):
    """Collects what is said of lost hosts."""

    def __init__(self):
        super().__init__()
        self.event = threading.Event()

    def __call__(self, text):
        self.append(text)
        self.event.set()


@pytest.fixture
def pod(monkeypatch):
    """Makes the watches of three hosts, which end with the test."""
    monkeypatch.setattr(alive, "BEAT_SECONDS", 0.02)
    store, lost, made = Store(), Lost(), []

    def watch(here, seconds=60.0):
        made.append(alive.Watch(store, here, ["a", "b", "c"], seconds, lost))
        return made[-1]

    watch.store, watch.lost = store, lost
    yield watch
    for one in made:
        one.leave("")


def test_hosts_stop_after_one_unit_more_than_the_fastest_has_done(pod):
    watches = [pod(n) for n in range(3)]
    done = [4, 6, 5]
    for watch, count in zip(watches, done, strict=True):
        assert not any(watch.reached() for _ in range(count))
    watches[2].ask(signal.SIGTERM)
    deadline = time.monotonic() + 60
    while not all(watch.signal for watch in watches) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [watch.signal for watch in watches] == [signal.SIGTERM] * 3
    more = [[watch.reached() for _ in range(3)].index(True) for watch in watches]
    assert [a + 1 + b for a, b in zip(done, more, strict=True)] == [7, 7, 7]


def test_a_host_that_works_by_itself_stops_at_its_own_unit(pod):
    """The other hosts stop where the work that all did by themselves ends."""
    watches = [pod(n) for n in range(3)]
    interrupts.listen(watches[0])
    try:
        interrupts.check("nothing")  # counts the first unit
        for watch in watches[1:]:
            assert not watch.reached()
        with interrupts.apart():
            interrupts.check("nothing")  # counts nothing
            watches[1].ask(signal.SIGINT)
            while not all(watch.signal for watch in watches):
                time.sleep(0.01)
            assert interrupts.asked()
            interrupts.check("3 of 9 problems are saved")
            pytest.fail("it went on")
        with pytest.raises(interrupts.Stopped) as raised:
            interrupts.check("something else")
        assert raised.value.saved == "3 of 9 problems are saved"
        assert interrupts.status() == 130
        assert all(watch.reached() for watch in watches[1:])
    finally:
        interrupts.end()


def test_a_host_without_a_sign_of_life_is_named(pod):
    pod(0, 0.5)
    pod(1, 0.5)
    assert pod.lost.event.wait(60)
    assert pod.lost[0] == (
        "host 2 (c) has given no sign of life for 0 s. Look at what it printed last. "
        "The same command on all hosts continues."
    )


def test_the_end_waits_for_what_is_under_way(pod, monkeypatch):
    watch = pod(0)
    begun, finish = threading.Event(), threading.Event()
    read = pod.store.key_value_dir_get

    def slow(folder):
        begun.set()
        finish.wait(60)
        return read(folder)

    pod.store.key_value_dir_get = slow
    assert begun.wait(60)
    monkeypatch.setattr(alive, "BEAT_SECONDS", 6.0)  # it waits for ten of them
    ended = threading.Thread(target=watch.end)
    ended.start()
    assert watch._thread.is_alive() and not watch.signal
    finish.set()
    ended.join(60)
    assert not watch._thread.is_alive()
    assert pod.lost == []


def test_a_host_that_fails_says_so(pod):
    watches = [pod(n) for n in range(3)]
    watches[1].leave("Look at what it printed last.")
    assert pod.lost.event.wait(60)
    assert pod.lost[0] == "host 1 (b) has ended: Look at what it printed last."
    assert all(text == pod.lost[0] for text in pod.lost)


def test_without_the_first_host_its_silence_counts(pod):
    pod(1, 0.5)
    pod.store.key_value_dir_get = None  # raises, as without a connection
    assert pod.lost.event.wait(60)
    assert pod.lost[0].startswith("host 0 (a) has given no sign of life")
