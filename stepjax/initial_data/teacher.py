"""A teacher answers prompts: it judges pairs of steps, or cuts solutions into steps.

    ask = make_teacher(settings.teacher, "answers.jsonl")
    answers = ask(["Which step is better? …", …])  # one answer per prompt, in order

Three backends: "http" asks an OpenAI-compatible server (`teacher_http`), "local" lets a
model of our own write (`teacher_local`), and "replay" reads the answers from a file.
The answers of the first two are kept in such a file (`teacher_answers`).
"""

import collections
import contextlib
import functools
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from stepjax.initial_data.teacher_answers import Answer, Kept, Request, read_answers

if TYPE_CHECKING:
    from stepjax.settings import Teacher

# Prompts → one answer for each, in the same order.
Ask = Callable[[Sequence[str]], list[Answer]]
# A model that writes: prompts → (index of a prompt, its answer), in any order.
Generate = Callable[[Sequence[str]], Iterable[tuple[int, Answer]]]


def make_teacher(
    options: "Teacher",
    cache: str | os.PathLike = "",
    *,
    generate: Generate | None = None,
    on_done: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = print,
    backoff: float = 1.0,
) -> Ask:
    """Returns a teacher.

    Args:
      options: settings of the teacher; the backend is "http", "local" or "replay".
      cache: "http" and "local": file that keeps the answers; made if it is missing.
        Only one process at a time can use it.
      generate: "local": the model that writes, see `teacher_local.sampled`.
      on_done: called with the number of prompts just answered. The numbers add up to
        the number of prompts; those answered by an earlier run come first.
      say: prints a line for people.
      backoff: seconds before a failed request is sent again for the first time; they
        double each time, up to 60 of these waits.

    Returns:
      ``ask(prompts)``: the answers. Equal prompts are asked once. It raises ValueError
      when answers cannot be had, and KeyboardInterrupt after Ctrl-C; the answers that
      arrived are kept, and the same call later asks only for the missing ones.

    Raises:
      ValueError: a setting is missing or out of range.
    """
    _check(options)
    if options.backend == "replay":
        return replay(options.file, options.model, on_done=on_done)
    if not cache:
        raise ValueError(
            f"the teacher {options.backend!r} was given no file for its answers; "
            "expected the path of a file, which is made if it is missing."
        )
    if options.backend == "local":
        if generate is None:
            raise ValueError(
                "the teacher 'local' was given no model; expected `generate`, which "
                "writes the answers."
            )

        def write(requests, spent, arrived):
            for index, answer in generate([request.prompt for request in requests]):
                arrived(requests[index], answer)

        return _keeping(options, cache, write, on_done, say)

    return _keeping(options, cache, _http(options, say, backoff), on_done, say)


@contextlib.contextmanager
def opened(
    options: "Teacher",
    cache: str | os.PathLike,
    *,
    say: Callable[[str], None] = print,
    backoff: float = 1.0,
) -> Iterator[Ask]:
    """Gives the teacher "http" for many calls, with its file of answers held open.

    The file is read once, when it is first needed. See `make_teacher` for arguments and
    errors.
    """
    fetch, held = _http(options, say, backoff), []

    def ask(prompts: Sequence[str]) -> list[Answer]:
        _check_prompts(prompts)
        if not held:
            held.append(stack.enter_context(Kept(cache, say)))
        return _asked(options, held[0], prompts, fetch)

    with contextlib.ExitStack() as stack:
        yield ask


def _http(options: "Teacher", say: Callable, backoff: float) -> Callable:
    """Returns the function that fetches answers from a server."""
    _check(options)
    from stepjax.initial_data import teacher_http

    teacher_http.check(options)
    return functools.partial(teacher_http.fetch, options, say=say, backoff=backoff)


def replay(
    path: str | os.PathLike,
    model: str = "",
    *,
    on_done: Callable[[int], None] = lambda count: None,
) -> Ask:
    """Returns a teacher that reads its answers from a file, which is not changed.

    Answers are found by their prompts.

    Args:
      path: file of answers, as the other teachers keep them; only "prompt" and "text"
        must be there.
      model: only answers of this model count; "" takes all.
      on_done: see `make_teacher`.

    Returns:
      ``ask(prompts)``; ValueError if a prompt has no answer in the file.

    Raises:
      ValueError: the file cannot be read, a row is malformed, or a prompt has two
        different answers.
    """
    if not str(path):
        raise ValueError(
            "teacher.file is empty; expected the file of answers to replay."
        )
    answers: dict[str, Answer] = {}
    places: dict[str, str] = {}
    for place, row, answer in read_answers(path):
        prompt = row["prompt"]
        if model and row.get("model", model) != model:
            continue
        earlier = answers.setdefault(prompt, answer)
        if (earlier.text, earlier.finished) != (answer.text, answer.finished):
            raise ValueError(
                f"{place}: the prompt {reprlib.repr(prompt)} has another answer at "
                f"{places[prompt]}; expected one answer per prompt. If the two are "
                "from different models, name one of them in teacher.model."
            )
        places.setdefault(prompt, place)

    def ask(prompts: Sequence[str]) -> list[Answer]:
        _check_prompts(prompts)
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in answers]
        if missing:
            raise ValueError(
                f"{path}: no answer to {len(missing)} of {len(set(prompts))} prompts; "
                f"the first is {missing[0][:300]!r}. Prompts must be the same to the "
                "last character: replay with the templates and the data of the run "
                "that made the file, or ask for the missing answers with another "
                "teacher.backend."
            )
        on_done(len(prompts))
        return [answers[prompt] for prompt in prompts]

    return ask


def _keeping(
    options: "Teacher", path, fetch: Callable, on_done: Callable, say: Callable
) -> Ask:
    """Returns a teacher that fetches only the answers that no earlier run has kept.

    Args:
      options: of the requests.
      path: file of the answers.
      fetch: (requests, spent=tokens spent so far, arrived=function): calls
        arrived(request, answer) as each answer comes.
      on_done: see `make_teacher`.
      say: see `make_teacher`.
    """

    def ask(prompts: Sequence[str]) -> list[Answer]:
        _check_prompts(prompts)
        with Kept(path, say) as kept:
            return _asked(options, kept, prompts, fetch, on_done)

    return ask


def _asked(
    options: "Teacher",
    kept: Kept,
    prompts: Sequence[str],
    fetch: Callable,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """Returns the answers to prompts, and fetches those that are not kept yet.

    Args:
      options: of the requests.
      kept: the open file of answers.
      prompts: what is asked.
      fetch: see `_keeping`.
      on_done: see `make_teacher`.
    """
    limits = (options.model, float(options.temperature), options.max_tokens)
    requests = [Request(prompt, *limits) for prompt in prompts]
    missing = collections.Counter(r for r in requests if r not in kept)
    on_done(len(requests) - missing.total())

    def arrived(request: Request, answer: Answer) -> None:
        kept.add(request, answer)
        on_done(missing[request])

    if missing:
        try:
            fetch(list(missing), spent=kept.spent, arrived=arrived)
        except ValueError as error:
            raise ValueError(
                f"{error} The answers so far are kept in {kept.path}."
            ) from error.__cause__
    return [kept[request] for request in requests]


# The least values of settings that are numbers; 0 of the two limits is no limit.
LEAST = {
    "temperature": 0,
    "max_tokens": 1,
    "concurrency": 1,
    "requests_per_minute": 0,
    "token_budget": 0,
    "timeout": 0.001,
    "retries": 0,
}


def _check(options: "Teacher") -> None:
    """Raises ValueError for a setting out of range."""
    if options.backend not in ("http", "local", "replay"):
        raise ValueError(
            f"teacher.backend={options.backend!r}; expected 'http', 'local' or "
            "'replay'."
        )
    for name, least in LEAST.items():
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= least):
            raise ValueError(
                f"teacher.{name}={value!r}; expected a number from {least}."
            )


def _check_prompts(prompts: Sequence[str]) -> None:
    """Raises ValueError unless these are texts that can be sent."""
    if isinstance(prompts, str):
        raise ValueError(
            f"the prompts are one text, {reprlib.repr(prompts)}; expected a list."
        )
    for number, prompt in enumerate(prompts, 1):
        try:
            good = bool(prompt.encode("utf-8").strip())
        except (AttributeError, UnicodeEncodeError):
            good = False
        if not good:
            raise ValueError(
                f"prompt {number} is {reprlib.repr(prompt)}; expected text that is not "
                "empty and has a UTF-8 form."
            )
