"""Checks of a run's mesh, splits and budgets, made before anything is compiled.

The settings alone are checked earlier, by `stepjax.run.ranges`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.initial_data import prm, teacher, teacher_local
from stepjax.lm import hosts, sharding, unknown
from stepjax.lm import model as lm
from stepjax.run.judge_rules import is_foreign
from stepjax.run.kind import choose
from stepjax.settings import Search, Settings


def check_initial_data(
    settings: Settings, codec: Codec, files: Mapping[str, Sequence]
) -> None:
    """Raises ValueError for what would stop a run while it makes its EFT rows.

    Args:
      settings: of the run, which has `data.make_eft`.
      codec: tokenizer and templates.
      files: name → rows: "ift", "tree_questions", and "labels" unless rollouts make
        the labels.
    """
    options = settings.prm
    if settings.teacher.backend != "world":
        # It is not asked here; that needs a file for its answers, and a local model.
        teacher.make_teacher(settings.teacher, "answers.jsonl", generate=lambda p: ())
    if settings.teacher.backend == "local" and settings.teacher.model:
        teacher_local.described(settings, codec.templates)
    if options.prompt:  # `check_budgets` has checked that of the solver
        prompts.check_prompt("prm.prompt", options.prompt)
        for row in files["tree_questions"]:
            empty = prm.context(codec, prm.Solving(row.problem, ()), options.prompt)
            row_name = f"tree_questions row {row.id!r}: the PRM's prompt"
            _check_room_for_a_step(row_name, len(empty), settings.search)
    if not options.learns:
        return
    prm.label_ids(codec)
    if options.labels == "rollouts":
        rows = len(files["ift"])
        problems = min(rows, settings.rollouts.problems or rows)
        if problems <= options.heldout_count:
            raise ValueError(
                f"prm.heldout_count={options.heldout_count} with {problems} problems "
                "whose steps rollouts label; expected less. Lower it, or raise "
                "rollouts.problems."
            )
        return
    if not files["labels"]:
        raise ValueError(
            f"prm.labels_count={options.labels_count} makes no step labels in the "
            "arithmetic world; expected a number above 0 (or prm.labels='rollouts')."
        )
    length = settings.train.row_length
    sizes = (
        len(prm.tree(codec, row, options.prompt).tokens) for row in files["labels"]
    )
    if all(size > length for size in sizes):  # ends at the first row that fits
        raise ValueError(
            f"all {len(files['labels'])} rows of labelled steps have more than "
            f"train.row_length={length} tokens; expected some that fit. Raise "
            "train.row_length."
        )


def check_server(settings: Settings) -> None:
    """Raises ValueError when the server that judges cannot be asked; it is not asked.

    Args:
      settings: of the run.
    """
    if settings.judge.by == "http":
        options = dataclasses.replace(settings.teacher, backend="http")
        teacher.make_teacher(options, "answers.jsonl")


def check_verdicts(settings: Settings, codec: Codec) -> None:
    """Raises ValueError when no judgment could hold a verdict that is read.

    Args:
      settings: of the run.
      codec: tokenizer and templates.
    """
    kind, judge = choose(settings), settings.judge
    name = "srlm.rating" if kind.name == "ratings" else "prompts.verdict"
    ends = kind.judgments.ends(codec.templates)
    for end in ends:
        # Another kind of judge writes no token ids of ours.
        said = end if is_foreign(judge.by) else codec.text(codec.line(end))
        if end not in said or kind.judgments.parse(codec.templates, said) is None:
            raise ValueError(
                f"{name}: a judgment that ends with {end!r} is read as {said!r}, in "
                "which no verdict is found; expected a form on one line that does not "
                "begin like a quotation or a thought, of characters that the tokenizer "
                "keeps as they are, such as '[[{side}]]'."
            )
    if settings.data.world:  # its prompts are not in words
        return
    asked = {}  # prompts of models that did not learn the form
    if judge.by == "http":
        asked["prompts.single" if kind.single else "prompts.judge"] = kind.single
    if settings.data.make_eft and settings.teacher.backend in ("http", "local"):
        asked["prompts.judge"] = ""
    for prompt, text in asked.items():
        missing = [end for end in ends if end not in (text or codec.templates.judge)]
        if missing:
            raise ValueError(
                f"{prompt} does not hold {missing[0]!r}, so a model that has not "
                f"learned the form of {name} cannot know how to end; expected all of "
                f"{', '.join(map(repr, ends))} in it. Change one of the two settings."
            )


def check_mesh(slots: int, *models: lm.Decoder) -> None:
    """Raises ValueError when slots or parameters do not divide over the devices.

    Args:
      slots: problems in flight, over all hosts (`search.slots`).
      *models: the decoder on the mesh of training, and on a host's mesh.
    """
    for model in models:
        sharding.param_shardings(model.mesh, lm.abstract_params(model))
    multiple = sharding.row_multiple(models[-1].mesh) * hosts.count()
    if slots % multiple:
        raise ValueError(
            f"search.slots={slots}; expected a multiple of the "
            f"{multiple} data-parallel devices."
        )


def check_disjoint(files: dict[str, list]) -> None:
    """Raises ValueError when the text of a problem is in two splits.

    IFT, EFT and what EFT is made from may share problems: all are training data of M1.

    Args:
      files: split → its rows, each with a `problem`.
    """
    groups: dict[str, list[str]] = {}
    for name, rows in files.items():
        group = "M1 training" if name in _TRAINING else name
        groups.setdefault(group, []).extend(row.problem for row in rows)
    owner: dict[str, str] = {}
    for group, texts in groups.items():
        for text in set(texts):
            if text in owner:
                raise ValueError(
                    f"problem {text[:60]!r} is in {owner[text]} and in {group}; "
                    "expected every problem in one split. Remove it from one."
                )
            owner[text] = group


# Splits whose problems M1 learns from, or what its EFT rows are made of.
_TRAINING = ("ift", "eft", "labels", "tree_questions")


def check_characters(codec: Codec, files: Mapping[str, Sequence]) -> list[str]:
    """Looks for characters that the tokenizer does not know.

    Args:
      codec: tokenizer and templates.
      files: name → rows, each with a `problem`, and perhaps `steps`. They are gone
        through twice at most.

    Returns:
      A warning for each file with such characters in some of its problems.

    Raises:
      ValueError: for a file with such characters in all of its problems.
    """
    warnings = []
    for name, rows in files.items():
        seen: set[str] = set()
        for row in rows:
            seen.update(_text(row))
        lost = unknown.alone(codec.tokenizer, seen)
        bad, characters = [], {}
        for row in rows if lost else ():
            if within := unknown.within(codec.tokenizer, _text(row), lost):
                bad.append(row.id)
                characters |= dict.fromkeys(within)
        if not bad:
            continue
        found = "".join(characters)
        shown = repr(found[:40]) + (f" and {len(found) - 40} more" * (len(found) > 40))
        said = (
            f"hold characters that the tokenizer does not know: {shown}. The first of "
            f"these problems is {bad[0]!r}"
        )
        count = f"{len(bad)} of {len(rows)} problems"
        if len(bad) == len(rows):
            raise ValueError(
                f"{name}: {count} {said}; expected problems that it can read. Use "
                "another file, or a model whose tokenizer knows these characters."
            )
        warnings.append(
            f"{name}: {count} {said}. The model does not see these characters."
        )
    return warnings


def _text(row) -> str:
    return "".join([row.problem, *getattr(row, "steps", ())])


def check_budgets(settings: Settings, codec: Codec, files: dict[str, list]) -> None:
    """Raises ValueError when a prompt does not fit its sequence budget.

    Args:
      settings: of the run.
      codec: tokenizer and templates.
      files: name → rows with a `problem`: questions and test problems.
    """
    judge = settings.judge
    context = choose(settings).judgments.context
    for name, rows in files.items():
        for row in rows:
            tokens = len(codec.solve_prompt(row.problem))
            row_name = f"{name} row {row.id!r}: its prompt"
            _check_room_for_a_step(row_name, tokens, settings.search)
            if is_foreign(judge.by):
                continue
            need = len(context(codec, row.problem, ()))
            if need > judge.context_tokens:
                raise ValueError(
                    f"{name} row {row.id!r}: the judge's prompt has {need} tokens; "
                    f"expected at most judge.context_tokens={judge.context_tokens}. "
                    "Raise it or drop the problem."
                )
    response = max(len(codec.verdict(side)) for side in "AB")
    if judge.mode == "generate" and judge.max_tokens < response:
        raise ValueError(
            f"judge.max_tokens={judge.max_tokens}; expected at least the {response} "
            "tokens of a verdict."
        )


def check_window(
    settings: Settings, codec: Codec, files: dict[str, list], window: int
) -> None:
    """Raises ValueError when a sequence could be longer than a sliding window.

    The decoder lets every token see all tokens before it. That is what the model
    computes as long as no sequence is longer than its window. Where other stages sample
    more, such as rollouts, `Sampler` checks it.

    Args:
      settings: of the run.
      codec: tokenizer and templates.
      files: name → rows with a `problem`: questions and test problems.
      window: tokens of the model's sliding window; 0 for none.
    """
    if not window:
        return
    chosen, judge = choose(settings), settings.judge
    problems = (row.problem for rows in files.values() for row in rows)
    prompt = max((len(codec.solve_prompt(text)) for text in problems), default=0)
    longest = {
        "train.row_length": settings.train.row_length,
        "search.context_tokens": settings.search.context_tokens,
        "the longest prompt and eval.max_tokens": prompt + settings.eval.max_tokens,
    }
    if settings.search.redraw:  # from anywhere in a candidate, as many tokens again
        named = "search.context_tokens and, for search.redraw, a candidate"
        context = settings.search.context_tokens
        longest[named] = context + chosen.candidate_tokens - 1
    if not is_foreign(judge.by):
        shown = 2 if judge.kind == "comparisons" else 1
        written = chosen.judgment_tokens if judge.mode == "generate" else 0
        longest["judge.context_tokens, the judged candidates and the judgment"] = (
            judge.context_tokens + shown * chosen.candidate_tokens + written
        )
    over = {name: count for name, count in longest.items() if count > window}
    if over:
        said = "; ".join(f"{name}: {count} tokens" for name, count in over.items())
        raise ValueError(
            f"{said}; expected at most {window}, because layers of this model have a "
            f"sliding window of {window} tokens, which the decoder does not compute. "
            "Lower these settings, or use a model without such a window."
        )


def _check_room_for_a_step(prompt: str, tokens: int, search: Search) -> None:
    """Raises ValueError unless a prompt leaves room for a step in its context.

    Args:
      prompt: which one, for the message.
      tokens: of the prompt.
      search: budgets of a step and of a context.
    """
    need = tokens + search.max_step_tokens
    if need > search.context_tokens:
        raise ValueError(
            f"{prompt} and one step of search.max_step_tokens={search.max_step_tokens} "
            f"need {need} tokens; expected at most search.context_tokens="
            f"{search.context_tokens}. Raise it or drop the problem."
        )
