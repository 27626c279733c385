"""Records → token ids, the same way in training, searching and judging.

Every sequence is a chain of pieces that each begin at the start of a line: a prompt,
then one piece per step, and for the judge the parts of its template between them. A
piece is encoded as it continues after a newline. So the ids of a sequence grow without
ever changing, caches can be extended, and a sampled step's own ids can take the place
of its text. EOS ends a final step and a verdict, nothing else.

Names of special tokens ("<|im_end|>") become control ids in templates only. In a
problem, a step, an explanation or a candidate they are plain text.

With `Templates.chat` = "template", the texts of the tokenizer's chat template belong to
the first piece and to the last piece of a prompt, and EOS is the model's end of turn.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

from stepjax import prompts
from stepjax.lm.chat import Chat
from stepjax.lm.tokenizer import Tokenizer
from stepjax.prompts import Templates
from stepjax.records import Comparison, Solution


class Codec:
    """A tokenizer with the templates of a run.

    Attributes:
      tokenizer: the tokenizer; with a chat template, its `eos_id` is the id that ends
        a turn, which also comes first in its `stop_ids`.
      templates: the prompt texts.
      newline: ids of a newline at the end of a line.
      stop_ids: ids that end a sequence.
    """

    def __init__(self, tokenizer: Tokenizer, templates: Templates):
        """Checks the templates and prepares the fixed pieces.

        Raises:
          ValueError: for bad templates, pieces that the tokenizer cannot encode line by
            line, or a chat template that is missing or cannot be used.
        """
        prompts.check_templates(templates)
        self._chat, self._bos = Chat(), True
        if templates.chat == "template":
            # The template says whether a prompt begins with BOS.
            self._chat, self._bos = tokenizer.chat(), False
            end = self._chat.end_id
            stops = tuple(dict.fromkeys((end, *tokenizer.stop_ids)))
            tokenizer = dataclasses.replace(tokenizer, eos_id=end, stop_ids=stops)
        self.tokenizer, self.templates = tokenizer, templates
        self.stop_ids = frozenset(tokenizer.stop_ids)
        line = tokenizer.encode_line("a")
        self.newline = tokenizer.encode_line("a\n")[len(line) :]
        # Rows near each other in a file share lines; 4,096 lines take about 10 MB.
        self._lines = functools.lru_cache(maxsize=4096)(self._encode_line)
        self._fixed = functools.lru_cache(maxsize=64)(self._encode_fixed)
        # "{problem}" stays in the head: each problem's text is put in later.
        self._judge_head = prompts.judge_pieces(templates, "{problem}").head
        _, before_a, between, tail = prompts.judge_pieces(templates, "")
        self._before_a, self._between = map(self._fixed, (before_a, between))
        self._tail = self.closing(tail)
        if templates.chat == "template":
            self._check_replies()

    def _check_replies(self) -> None:
        """Refuses a chat template behind which a step does not begin like a line."""
        after, step = self._chat.after, prompts.marker(self.templates, 1)
        prompt = self.tokenizer.encode_prompt(f"a{after}", bos=False)
        joint = self.tokenizer.encode_prompt(f"a{after}{step}", bos=False)
        line = list(self.line(step))
        if joint != prompt + line:
            raise ValueError(
                f"behind the chat template's last text {after[-40:]!r}, the tokenizer "
                f"writes {step!r} as {joint[len(prompt) :]}; expected {line}, as at "
                "the start of a line. Set prompts.chat='none', and write the markup "
                "into prompts.solve and prompts.judge, with a newline at the end."
            )

    def _encode_fixed(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a part of a template that begins a line."""
        return tuple(self.tokenizer.encode_line(text, markup=True))

    def _encode_line(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode_line(text)) if text else ()

    def line(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a text that begins at the start of a line."""
        return self._lines(text)

    def opening(self, text: str, problem: str) -> tuple[int, ...]:
        """Returns the ids of the first piece of a prompt that has several.

        Args:
          text: the part of a template that holds "{problem}"; ends with a newline.
          problem: text of the problem.
        """
        return self._prompt(text.lstrip() if self._chat.trims else text, problem)

    def middle(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a piece of a prompt between the first and the last one.

        Args:
          text: the part of a template, which begins a line; may be empty.
        """
        return self._fixed(text)

    def closing(self, text: str) -> tuple[int, ...]:
        """Returns the ids of the last piece of such a prompt; the response follows.

        Args:
          text: the last part of a template, which begins a line; may be empty.
        """
        text = text.rstrip() if self._chat.trims else text
        return self._fixed(text + self._chat.after)

    def prompt(self, text: str, problem: str) -> tuple[int, ...]:
        """Returns the ids of a prompt of one piece; the response follows.

        Args:
          text: a template with "{problem}"; ends with a newline.
          problem: text of the problem.
        """
        text = text.strip() if self._chat.trims else text
        return self._prompt(text, problem, self._chat.after)

    def _prompt(self, text: str, problem: str, after: str = "") -> tuple[int, ...]:
        if self._chat.trims:  # the text is trimmed, but it may begin with the problem
            problem = problem.lstrip() if text.startswith("{problem}") else problem
            problem = problem.rstrip() if text.endswith("{problem}") else problem
        text, texts = self._chat.before + text + after, {"{problem}": problem}
        return tuple(self.tokenizer.encode_prompt(text, texts, bos=self._bos))

    def message(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a prompt whose texts are put in already, for a teacher.

        Names of special tokens in it are plain text, with one exception: without a chat
        template, and with names in the judge's own template, all names become control
        ids. Which names are the template's can no longer be seen in the whole text.
        """
        if self.templates.chat == "none":
            if self.tokenizer.has_markup(self.templates.judge):
                return tuple(self.tokenizer.encode_prompt(text))
        return self.prompt("{problem}", text)

    def solve_prompt(self, problem: str) -> tuple[int, ...]:
        """Returns the ids that the solution of a problem follows."""
        return self.prompt(self.templates.solve, problem)

    def step(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a step: with its newline, or bare when it is final."""
        final = prompts.boxed(text) is not None
        return self.line(text if final else text + "\n")

    def solution(self, row: Solution) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """Returns the prompt's ids and each step's; the last one ends with EOS."""
        prompts.check_steps(self.templates, row.steps)
        steps = [self.line(text + "\n") for text in row.steps[:-1]]
        steps.append((*self.line(row.steps[-1]), self.tokenizer.eos_id))
        return self.solve_prompt(row.problem), steps

    def judge_context(
        self, problem: str, steps: Sequence[Sequence[int]]
    ) -> tuple[int, ...]:
        """Returns the ids shared by all judgments of a step; grows with the steps."""
        ids = list(self.opening(self._judge_head, problem))
        for step in steps:
            ids.extend(self.as_line(step))
        return tuple(ids)

    def judge_question(self, a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
        """Returns the ids after the shared context, for one ordered pair of steps."""
        first = self._before_a + self.as_line(a)
        return first + self._between + self.as_line(b) + self._tail

    def comparison(self, row: Comparison) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the ids of an EFT row: prompt, and response (ends with EOS)."""
        prompts.check_steps(self.templates, row.steps)
        context = self.judge_context(row.problem, [self.step(s) for s in row.steps])
        question = self.judge_question(self.step(row.a), self.step(row.b))
        verdict = prompts.verdict(self.templates, row.verdict)
        response = self.line(row.explanation + verdict)
        return context + question, (*response, self.tokenizer.eos_id)

    def verdict(self, side: str) -> tuple[int, ...]:
        """Returns the ids of a bare verdict."""
        return self.line(prompts.verdict(self.templates, side))

    def before(self, ids: Sequence[int], text: str) -> tuple[tuple[int, ...], str]:
        """Returns what ids hold before the last place of a text.

        Args:
          ids: of what was written.
          text: something that it holds.

        Returns:
          (the ids before the token in which the text begins, what that token holds
          before the text, mostly "" or a space).

        Raises:
          ValueError: when the ids do not hold the text.
        """
        pieces = [self.tokenizer.token_bytes[id] for id in ids]
        whole = b"".join(pieces)
        place = whole.rindex(text.encode())
        starts = itertools.accumulate(map(len, pieces), initial=0)
        number, start = max((n, at) for n, at in enumerate(starts) if at <= place)
        return tuple(ids[:number]), whole[start:place].decode("utf-8", "replace")

    def verdict_tokens(self, response: Sequence[int], verdict: str) -> int:
        """Returns how many of a response's last ids cover its verdict and EOS.

        Args:
          response: ids of an explanation, a verdict, and EOS.
          verdict: text of the verdict.
        """
        need, count = len(verdict.encode()), 1
        while need > 0 and count < len(response):
            count += 1
            need -= len(self.tokenizer.token_bytes[response[-count]])
        return count

    def words(self, ids: Sequence[int], words: Sequence[str]) -> list[bool]:
        """Returns for each id whether it holds a part of one of some words.

        Args:
          ids: of a text.
          words: only whole words count: "right" is not in "brighter".
        """
        pieces = [self.tokenizer.token_bytes[id] for id in ids]
        # Ids may end within a character; such bytes come back as they were.
        text = b"".join(pieces).decode("utf-8", "surrogateescape")
        spelled = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        matches = re.finditer(rf"(?<!\w)(?:{spelled})(?!\w)", text) if words else ()
        found = [
            tuple(len(text[:at].encode("utf-8", "surrogateescape")) for at in m.span())
            for m in matches
        ]
        ends = list(itertools.accumulate(map(len, pieces)))
        return [
            any(start < end and end - len(piece) < stop for start, stop in found)
            for piece, end in zip(pieces, ends, strict=True)
        ]

    def strip(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Returns ids without a stop id at the end."""
        return tuple(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of a step for people: no EOS, no newline at the end."""
        return self.tokenizer.decode(self.strip(ids)).rstrip("\n")

    def as_line(self, step: Sequence[int]) -> tuple[int, ...]:
        """Returns the ids of a step, or of several, with a newline at the end."""
        ids = self.strip(step)
        ends = self.tokenizer.token_bytes[ids[-1]].endswith(b"\n") if ids else False
        return ids if ends else (*ids, *self.newline)
