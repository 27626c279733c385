"""Who judges in a search of a run: `judge.by` and `judge.model`.

    self    the model that searches, or M1, which then stays as it is (judge.model)
    random, oracle   controls: coins, the gold
    prm     the process reward model that the run has trained in DIR/init/prm
    http    a model behind an OpenAI-compatible server, that of the settings `teacher`
    module:function  a function of one's own, see `stepjax.own_functions`

What these judges are asked, and how their verdicts count, is in `stepjax.judge`.
"""

import contextlib
import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from stepjax import controls, interrupts, own_functions, own_import, tournament
from stepjax.initial_data import eft, prm, teacher
from stepjax.judge import Call, Judge, Request, all_calls
from stepjax.lm.sampler import Sampler
from stepjax.pointwise import prompt_text
from stepjax.run.manifest import model_digest
from stepjax.run.run import Run
from stepjax.self_judge import make_judge
from stepjax.trajectory import Verdict

_CERTAIN = 1e-12  # a PRM's probabilities are kept this far from 0 and 1


def open_sampler(run: Run, params: Any, capacity: int, *, remember: int = 0) -> Sampler:
    """Returns empty context caches of `capacity` tokens, one for each slot.

    Args:
      run: the run.
      params: of the model, from `Run.sampling_params`.
      capacity: most tokens of a context.
      remember: see `sampler.Sampler`.
    """
    model = run.local_model
    return Sampler(model, params, model.mesh, run.slots, capacity, remember=remember)


def self_judge(run: Run, sampler: Sampler, rows: int, share: int = 1) -> Judge:
    """Returns the model as its own judge; see `self_judge.make_judge`."""
    judge, seed = run.settings.judge, run.settings.seed
    made = make_judge(
        sampler,
        run.codec,
        run.kind.judgments,
        mode=judge.mode,
        max_tokens=run.kind.judgment_tokens,
        temperature=judge.temperature,
        top_p=judge.top_p,
        rows=rows,
        share=share,
        value=judge.value,
        keep_ids=judge.learn != "none",
        seed=seed,
    )
    return tournament.voted(made, run.kind.judgments, judge.votes, seed)


def inputs(run: Run) -> dict[str, str]:
    """Returns the models that judge beside the one that searches: name → digest."""
    judge = run.settings.judge
    if judge.by == "prm":
        manifest = run.dir.path / "init" / "prm" / "manifest.json"
        return {"prm": model_digest(manifest)}
    if judge.model:
        return run.dir.model_digest(1)
    return {}


def open_judge(
    run: Run,
    params: Any,
    by: str,
    answers: pathlib.Path | None,
    stack: contextlib.ExitStack,
    most: int = 0,
) -> tuple[Judge, Sampler | None]:
    """Returns who judges, and the context caches that it uses, if any.

    Args:
      run: the run.
      params: of the model that searches, from `Run.sampling_params`.
      by: one of `controls.JUDGES`. Where `judge.by` of the settings names another judge
        than the model itself, that one judges.
      answers: file that keeps the answers of a server while the search goes on; None
        keeps them nowhere.
      stack: closes what the judge has opened.
      most: candidates of a problem that are judged together, if that can be more than
        `search.width`.
    """
    options, seed, sampler = run.settings.judge, run.settings.seed, None
    score, schedule, judgments = options.score, options.schedule, run.kind.judgments
    if own_import.named(options.by):
        judge = own_functions.judge(
            own_import.load("judge.by", options.by),
            run.codec,
            name=f"judge.by={options.by!r}",
            score=score,
            seed=seed,
        )
    elif options.by == "prm":
        sampler = open_sampler(run, _prm(run), run.settings.search.context_tokens)
        judge = prm_judge(run, sampler, most)
    elif options.by == "http":
        judge = http_judge(run, answers, stack)
    elif by == "random":
        judge = controls.random_judge(judgments, seed)
    elif by == "oracle":
        judge = controls.oracle_judge(run.kind.is_right, run.codec, judgments, seed)
    else:
        params = run.sampling_params(1) if options.model else params
        sampler = open_sampler(run, params, options.context_tokens)
        width = run.settings.search.width
        rows, share = tournament.layout(schedule, width, judgments.calls, options.rows)
        judge = self_judge(run, sampler, rows, share)
    value = options.value
    return tournament.scheduled(judge, schedule, score, seed, value=value), sampler


def _prm(run: Run) -> Any:
    return run.load_for_sampling(run.dir.path / "init" / "prm")


def prm_judge(run: Run, sampler: Sampler, most: int = 0) -> Judge:
    """Returns the judge that compares the PRM's probabilities of two steps.

    The higher probability of "+" wins, equal ones are no preference. A step that is
    judged alone is right if its probability is above 1/2. The probability of
    a verdict, p_a (1 - p_b) / (p_a (1 - p_b) + p_b (1 - p_a)), is that of A being right
    if exactly one of the two is. It is kept with ``judge.value="probability"``.

    Args:
      run: the run, which has a PRM.
      sampler: context caches of the PRM.
      most: see `open_judge`.
    """
    codec, settings = run.codec, run.settings
    width, soft = settings.search.width, settings.judge.value == "probability"
    width = max(width, most)
    score = prm.make_scorer(sampler, codec, width=width, prompt=settings.prm.prompt)

    def verdict(numbers: Sequence[float], a: int, b: int) -> Verdict:
        first, second = float(numbers[a]), float(numbers[b])
        if a == b:  # judged alone
            winner, probability = "A" if first > 0.5 else "B", round(first, 6)
            return Verdict(a, b, winner, f"{first:.6g}", probability if soft else None)
        winner = None if first == second else "A" if first > second else "B"
        probability = None
        if soft:
            odds = _log_odds(first) - _log_odds(second)
            probability = round(1 / (1 + math.exp(-odds)), 6)
        return Verdict(a, b, winner, f"A {first:.6g}, B {second:.6g}", probability)

    def judge(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = all_calls(requests, run.kind.judgments, settings.seed)
        asked = [r for r, pairs in zip(requests, calls, strict=True) if pairs]
        numbers = {}
        if asked:
            solving = {r.slot: prm.Solving(r.problem, r.steps) for r in asked}
            numbers = score(solving, {r.slot: r.candidates for r in asked})
        return [
            [verdict(numbers[request.slot], a, b) for a, b in pairs]
            for request, pairs in zip(requests, calls, strict=True)
        ]

    return judge


def _log_odds(probability: float) -> float:
    p = min(max(probability, _CERTAIN), 1 - _CERTAIN)
    return math.log(p / (1 - p))


def http_judge(
    run: Run, answers: pathlib.Path | None, stack: contextlib.ExitStack
) -> Judge:
    """Returns the judge that asks a server, with the settings `teacher`.

    It sees the same prompts as the model would. All calls of all problems in flight are
    sent together. An answer is kept as soon as it arrives, so that a search that was
    stopped, or whose server died, asks for nothing twice.

    Args:
      run: the run.
      answers: file of the answers; None takes one that is deleted with `stack`.
      stack: closes the file.

    Raises:
      ValueError: from the judge, when the server fails for good.
      interrupts.Stopped: from the judge, after a signal.
    """
    codec, judgments = run.codec, run.kind.judgments
    pointwise = run.kind.single
    if answers is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        answers = pathlib.Path(folder) / "answers.jsonl"
    options = dataclasses.replace(run.settings.teacher, backend="http")
    ask = stack.enter_context(teacher.opened(options, answers, say=run.monitor.say))

    def prompt(request: Request, call: Call) -> str:
        steps = [codec.text(ids) for ids in request.steps]
        first, second = (codec.text(request.candidates[i]) for i in call)
        if pointwise:
            return prompt_text(pointwise, request.problem, steps, first)
        return eft.judge_prompt(codec.templates, request.problem, steps, first, second)

    def judge(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = all_calls(requests, judgments, run.settings.seed)
        named = [
            (number, request, call)
            for number, request in enumerate(requests)
            for call in calls[number]
        ]
        verdicts: list[list[Verdict]] = [[] for _ in requests]
        try:
            found = ask([prompt(request, call) for _, request, call in named])
        except KeyboardInterrupt:
            if not interrupts.asked():
                raise
            raise interrupts.Stopped(
                "the searches up to the last pause and all answers of the server are "
                "saved"
            ) from None
        for (number, _, call), answer in zip(named, found, strict=True):
            winner = judgments.parse(codec.templates, answer.text)
            verdicts[number].append(Verdict(*call, winner, answer.text))
        return verdicts

    return judge
