"""The teacher behind an OpenAI-compatible server: POST {url}/chat/completions.

Many requests are under way at the same time. One that fails for a reason that may pass
is sent again, after waits that double and are jittered, or after as long as the server
asks for. Reasons that may pass are the statuses 408, 429 and 5xx, time-outs,
connections that cannot be made or that drop, and bodies that are no whole answer. All
other failures stop the run with what the server said.
"""

import asyncio
import contextlib
import email.utils
import json
import os
import reprlib
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepjax import interrupts
from stepjax.initial_data.teacher_answers import Answer, Request

if TYPE_CHECKING:
    from stepjax.settings import Teacher

_GRACE = 20.0  # seconds that a stopped run waits for the answers that are under way
_LONGEST_WAIT = 600.0  # seconds that a server may ask to wait
_LONGEST_BACKOFF = 60.0  # times the first wait
_CHAT_TOKENS = 64  # at most what a server's chat template adds to a prompt
# Values of finish_reason that say that an answer is whole; the last two are those of
# older versions of Hugging Face's server.
_ENDED = ("stop", "eos_token", "stop_sequence")
_SHOWN = 300  # characters of a server's message


class _MayPass(Exception):
    """A failure after which the request is sent again."""


class _Refused(Exception):
    """A failure that stops all requests."""


class _Stopped(Exception):
    """All requests stop, so this one is not sent, or not sent again."""


def check(options: "Teacher") -> None:
    """Checks the settings that only this teacher needs.

    Raises:
      ValueError: url or model is missing, the url cannot be used, the key has
        characters that no key has, or a package is missing.
    """
    if not options.model:
        raise ValueError(
            "teacher.model is empty; expected the name that the server gives the model."
        )
    httpx, _ = _packages()
    try:
        url = httpx.URL(options.url)
    except httpx.InvalidURL as error:
        raise ValueError(
            f"teacher.url={options.url!r} is no address ({error}); expected one such "
            "as 'http://localhost:8000/v1'."
        ) from error
    if url.userinfo or url.query or url.fragment:
        raise ValueError(
            f"teacher.url has a user name, a password, a query or a fragment beside "
            f"the host {url.host!r}; expected an address alone, since it is printed "
            "and stored. Put the key into the environment variable that "
            "teacher.key_variable names."
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"teacher.url={options.url!r}; expected an address such as "
            "'http://localhost:8000/v1'."
        )
    _key(options)


def fetch(
    options: "Teacher",
    requests: Sequence[Request],
    *,
    spent: int,
    arrived: Callable[[Request, Answer], None],
    say: Callable[[str], None],
    backoff: float,
) -> None:
    """Asks the server for the answers to different requests.

    SIGTERM, SIGHUP and Ctrl-C stop the sending. The answers that are under way have 20
    seconds to arrive; then the signal does what it does without us. A second signal
    ends the waiting.

    Args:
      options: url, key_variable, concurrency, requests_per_minute, token_budget,
        timeout and retries are used.
      requests: what to ask.
      spent: tokens spent before, which count towards the budget.
      arrived: called with each answer as it comes.
      say: prints a line for people.
      backoff: seconds of the first wait.

    Raises:
      ValueError: a request failed for good, or the token budget is reached. Answers
        that were under way have arrived by then.
      KeyboardInterrupt: after a signal.
    """
    sender = _Sender(options, requests, spent, arrived, backoff)
    if not sender.key:
        say(
            f"teacher: the environment variable {options.key_variable!r} is not set, "
            f"so {options.url} is asked without a key."
        )
    previous = {}
    if threading.current_thread() is threading.main_thread():
        known = ((number, signal.getsignal(number)) for number in interrupts.SIGNALS)
        left_alone = None, signal.SIG_IGN  # handled outside of Python, or ignored
        previous = {n: handler for n, handler in known if handler not in left_alone}
    try:
        asyncio.run(sender.run(list(previous), say))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if sender.signals:
        signal.raise_signal(sender.signals[0])
        raise KeyboardInterrupt  # where somebody's handler has returned
    if sender.error:
        left = len(requests) - sender.answered
        raise ValueError(
            f"{sender.error} {left} of {len(requests)} requests are not answered yet; "
            "the same command asks for these only."
        ) from sender.cause


class _Sender:
    """Sends the requests of one `fetch`.

    Attributes:
      key: the API key, or "".
      answered: number of answers so far.
      error: why the requests stop, in words; None if all went well.
      cause: exception behind the error.
      signals: numbers of the signals that came.
    """

    def __init__(self, options, requests, spent, arrived, backoff):
        self.httpx, self.tenacity = _packages()
        self.options, self.arrived = options, arrived
        self.queue = list(reversed(requests))
        self.spent, self.reserved = spent, 0
        self.backoff = backoff
        self.key = _key(options)
        self.url = options.url.rstrip("/") + "/chat/completions"
        self.answered = 0
        self.error: str | None = None
        self.cause: BaseException | None = None
        self.signals: list[int] = []
        self.next_send = self.resume = 0.0  # on the clock of the event loop

    async def run(self, signals: Sequence[int], say: Callable[[str], None]) -> None:
        """Answers all requests, or sets `error` or `signals`."""
        self.loop = asyncio.get_running_loop()
        self.stop, self.freed = asyncio.Event(), asyncio.Condition()
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        count = min(self.options.concurrency, len(self.queue))
        limits = self.httpx.Limits(max_connections=count)
        async with self.httpx.AsyncClient(
            headers=headers, timeout=None, limits=limits
        ) as self.client:
            workers = [asyncio.create_task(self._work()) for _ in range(count)]

            def cancel() -> None:
                for worker in workers:
                    worker.cancel()

            def stopped(number: int) -> None:
                self.signals.append(number)
                self.stop.set()
                if len(self.signals) > 1:
                    cancel()
                    return
                self.loop.call_later(_GRACE, cancel)
                say(
                    "teacher: stopped; the answers that are under way have "
                    f"{_GRACE:.0f} s to arrive. Stop again to end at once."
                )

            for number in signals:  # asyncio takes the handlers off at its end
                self.loop.add_signal_handler(number, stopped, number)
            for result in await asyncio.gather(*workers, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result  # not a failure of the server

    async def _work(self) -> None:
        """Answers requests until none is left or the run stops."""
        while self.queue and not self.stop.is_set():
            request = self.queue.pop()
            try:
                answer = await self._answer(request)
            except _Stopped:
                return
            except _MayPass as error:
                self._end(
                    f"{self.url}: {error} This request failed "
                    f"{self.options.retries + 1} times, the last time for this reason. "
                    "Check that the server runs; teacher.retries, teacher.timeout, "
                    "teacher.concurrency and teacher.requests_per_minute say how "
                    "patient the teacher is.",
                    error.__cause__,
                )
                return
            except _Refused as error:
                begins = f"The prompt begins with {request.prompt[:80]!r}."
                self._end(f"{self.url}: {error} {begins}", error.__cause__)
                return
            try:
                self.arrived(request, answer)  # OSError where the disk is full
            except BaseException:
                self.stop.set()
                raise
            self.answered += 1

    def _end(self, error: str, cause: BaseException | None = None) -> None:
        """Stops all requests; the first error is the one that is reported."""
        if self.error is None:
            self.error, self.cause = error, cause
        self.stop.set()

    async def _answer(self, request: Request) -> Answer:
        """Sends a request until it is answered; raises when it failed for good."""
        tenacity, first = self.tenacity, self.backoff
        longest = _LONGEST_BACKOFF * first
        send = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_MayPass),
            stop=tenacity.stop_after_attempt(self.options.retries + 1),
            wait=tenacity.wait_exponential(multiplier=first, max=longest)
            + tenacity.wait_random(0, first),
            sleep=self._pause,
            reraise=True,
        )
        return await send(self._attempt, request)

    async def _attempt(self, request: Request) -> Answer:
        body = {
            "model": request.model,
            "messages": [{"role": "user", "content": request.prompt}],
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
        }
        longest = len(request.prompt.encode()) + _CHAT_TOKENS  # a token has a byte
        async with self._reserved(longest + request.max_tokens):
            await self._turn()
            try:
                async with asyncio.timeout(self.options.timeout):
                    response = await self.client.post(self.url, json=body)
            except TimeoutError as error:
                raise _MayPass(
                    f"no whole answer within {self.options.timeout:g} s."
                ) from error
            except self.httpx.UnsupportedProtocol as error:
                raise _Refused(f"{error}") from error
            except (self.httpx.TransportError, self.httpx.DecodingError) as error:
                name = type(error).__name__
                raise _MayPass(f"the connection failed ({name}: {error}).") from error
            answer = self._read(response, longest)
            self.spent += answer.tokens
            return answer

    @contextlib.asynccontextmanager
    async def _reserved(self, tokens: int) -> AsyncIterator[None]:
        """Sets tokens of the budget aside; waits while others may give some back."""
        budget = self.options.token_budget
        async with self.freed:
            while budget and self.spent + self.reserved + tokens > budget:
                if self.stop.is_set():
                    raise _Stopped
                if not self.reserved:
                    self._end(
                        f"teacher.token_budget={budget:,} is reached: {self.spent:,} "
                        f"tokens are spent, and the next request may take up to "
                        f"{tokens:,}. Raise teacher.token_budget to go on."
                    )
                    raise _Stopped
                await self.freed.wait()
            self.reserved += tokens
        try:
            yield
        finally:
            self.reserved -= tokens
            async with self.freed:
                self.freed.notify_all()

    async def _turn(self) -> None:
        """Waits until a request may be sent."""
        if self.options.requests_per_minute:
            moment = max(self.loop.time(), self.next_send)
            self.next_send = moment + 60 / self.options.requests_per_minute
            await self._pause(moment - self.loop.time())
        while (wait := self.resume - self.loop.time()) > 0:
            await self._pause(wait)
        if self.stop.is_set():
            raise _Stopped

    async def _pause(self, seconds: float) -> None:
        """Sleeps; raises _Stopped as soon as the run stops."""
        try:
            await asyncio.wait_for(self.stop.wait(), max(seconds, 0))
        except TimeoutError:
            return
        raise _Stopped

    def _read(self, response, longest: int) -> Answer:
        """Reads an answer; `longest` is the most tokens that its prompt can have."""
        status, body = response.status_code, response.content
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if status != 200:
            raise self._refused(status, value, response)
        try:
            choice = value["choices"][0]
            text = choice["message"]["content"]
            finished = choice.get("finish_reason") in _ENDED
        except (TypeError, KeyError, IndexError, AttributeError):
            text = choice = None
        if text is None and isinstance(choice, dict):
            text = ""  # a refusal, or nothing but thoughts
        if not isinstance(text, str):
            shown = reprlib.repr(body.decode("utf-8", "replace"))
            raise _MayPass(
                f"the body {shown} is no answer; expected JSON with "
                "choices[0].message.content."
            )
        text = text.encode("utf-8", "replace").decode("utf-8")  # no half surrogates
        tokens = _total_tokens(value)
        if tokens is None:
            tokens = longest + len(text.encode())
        return Answer(text, finished, tokens)

    def _refused(self, status: int, value: Any, response) -> Exception:
        """Returns the exception for a response whose status is not 200."""
        message = value.get("error", value) if isinstance(value, dict) else value
        if isinstance(message, dict):
            message = message.get("message", message)
        if message is None:
            message = response.content.decode("utf-8", "replace")
        message = str(message)
        if self.key:
            message = message.replace(self.key, "[the key]")
        said = f"status {status}, {message[:_SHOWN]!r}."
        if status not in (408, 429) and status < 500:
            remedies = {
                401: f"Check the key in the variable {self.options.key_variable!r}.",
                403: f"Check the key in the variable {self.options.key_variable!r}.",
                404: "Check teacher.url (it often ends with /v1) and teacher.model.",
            }
            remedy = "Check teacher.url, teacher.model and teacher.max_tokens."
            return _Refused(f"{said} {remedies.get(status, remedy)}")
        wait = _retry_after(response.headers.get("retry-after"))
        if wait > _LONGEST_WAIT:
            return _Refused(
                f"{said} The server asks to wait {wait:,.0f} s, which is more than "
                f"{_LONGEST_WAIT:.0f}. Start again after that time."
            )
        self.resume = max(self.resume, self.loop.time() + wait)
        return _MayPass(said)


def _total_tokens(value: dict[str, Any]) -> int | None:
    """Returns usage.total_tokens, or None where the server does not say it."""
    usage = value.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and 0 <= total < 2**53 else None


def _retry_after(value: str | None) -> float:
    """Returns the seconds of a Retry-After header; 0 where it says nothing."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return min(float(value), 1e9)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, moment - time.time())


def _key(options: "Teacher") -> str:
    """Returns the key from the environment, "" where there is none."""
    key = os.environ.get(options.key_variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"the environment variable {options.key_variable!r} holds characters that "
            "no key has, such as spaces, line ends or letters outside ASCII; expected "
            "the key of the server, or no value."
        )
    return key


def _packages() -> tuple[Any, Any]:
    """Returns httpx2 and tenacity."""
    try:
        import httpx2
        import tenacity
    except ImportError as error:
        raise ValueError(
            f"the package {error.name} is missing, which asks a teacher's server; "
            'install it: pip install -e ".[data]".'
        ) from error
    return httpx2, tenacity
