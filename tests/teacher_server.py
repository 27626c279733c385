"""A real HTTP server that answers like a teacher, and fails where a test says so."""

import collections
import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Seen(NamedTuple):
    """One request that arrived."""

    prompt: str
    body: dict
    headers: dict[str, str]
    path: str
    at: float


def completion(text, *, finish="stop", total=10, **more) -> dict:
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    body = {
        "object": "chat.completion",
        "choices": [choice | {"finish_reason": finish}],
    }
    return body | {"usage": {"total_tokens": total}} | more


class Server:
    """What a test sees of the server.

    Attributes:
      url: for teacher.url.
      seen: the requests, in the order in which they arrived.
      faults: prompt → what to do at each further request of it; when the list is used
        up, the request is answered. A fault is (status, headers, body), a number of
        seconds to wait, or "drop": half of the body, then the connection is closed.
      answer: prompt → the body of its answer.
      delay: seconds that each answer takes.
      most: most requests that were under way at the same time.
    """

    def __init__(self):
        self.url = ""
        self.seen: list[Seen] = []
        self.faults: dict[str, list] = collections.defaultdict(list)
        self.answer: Callable[[str], dict] = lambda p: completion(f"to {p}", total=10)
        self.delay = 0.0
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @property
    def counts(self) -> collections.Counter:
        """How often each prompt arrived."""
        with self.lock:
            return collections.Counter(seen.prompt for seen in self.seen)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Runs a server while the block runs."""
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = body["messages"][0]["content"]
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(prompt, body, headers, self.path, time.monotonic())
            with state.lock:
                state.seen.append(seen)
                fault = state.faults[prompt].pop(0) if state.faults[prompt] else None
                state.now += 1
                state.most = max(state.most, state.now)
            try:
                self.reply(prompt, fault)
            except OSError:  # the client was killed
                self.close_connection = True
            finally:
                with state.lock:
                    state.now -= 1

        def reply(self, prompt, fault):
            if isinstance(fault, float):
                state.ended.wait(fault)
            elif state.delay and not isinstance(fault, tuple):
                time.sleep(state.delay)
            status, headers, data = 200, {}, json.dumps(state.answer(prompt)).encode()
            if isinstance(fault, tuple):
                status, headers, data = fault
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if fault == "drop":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    class Threads(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Threads(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield state
        finally:
            state.ended.set()
            server.shutdown()
            thread.join()
