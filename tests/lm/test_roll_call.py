"""The hosts that do not come are named."""

import socket
import threading

import pytest

from stepjax.lm.roll_call import roll_call


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def called(hosts, count, seconds):
    """Lets some of `count` hosts come; returns what each of them is told."""
    address, told = f"localhost:{free_port()}", {}

    def come(here):
        try:
            told[here] = roll_call(address, count, here, seconds)
        except TimeoutError as error:
            told[here] = str(error).replace(address, "ADDRESS")

    threads = [threading.Thread(target=come, args=(here,)) for here in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_all_hosts_come():
    assert called([2, 1, 0], 3, 60) == {0: None, 1: None, 2: None}


def test_every_host_names_those_that_are_missing():
    told = called([0, 1], 4, 1)
    assert told[0] == told[1]
    assert told[0].startswith("after 1 s, host 2, host 3 of 4 hosts did not come; ")
    assert "--host-timeout=SECONDS" in told[0]
    (told,) = called([1], 2, 1).values()
    assert told.startswith("after 1 s, host 0 (ADDRESS) of 2 hosts did not come; ")


def test_others_who_knock_are_not_counted():
    port, told = free_port(), []

    def first():
        told.append(roll_call(f"localhost:{port}", 2, 0, 60))

    thread = threading.Thread(target=first)
    thread.start()
    knocked = 0
    while knocked < 3:
        try:
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall([b"GET /\n", b'{"host": 7}\n', b"[]\n"][knocked])
                knocked += 1
        except OSError:  # it does not listen yet
            continue
    roll_call(f"localhost:{port}", 2, 1, 60)
    thread.join()
    assert told == [None]


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":9", "a:99999"])
def test_an_address_that_cannot_be_used_is_named(address):
    with pytest.raises(ValueError, match=f"JAX_COORDINATOR_ADDRESS='{address}'; exp"):
        roll_call(address, 2, 0, 1)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of JAX_COORD.* free port"):
            roll_call(f"localhost:{port}", 2, 0, 1)
