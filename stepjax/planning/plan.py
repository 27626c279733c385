"""The memory and time that a run needs on a TPU slice, without a TPU: ``stepjax plan``.

Compiles the programs of a run ahead of time for a slice. For each program it prints the
memory per chip, the FLOPs of the traced program, their ratio to those of a program that
computes nothing twice, and the shortest time that the chip's peak and bandwidth allow.
For the whole run M0 → Mn it estimates chip-hours at a stated utilisation.

Nothing is run: a program that compiles and fits may still be wrong or slow, and times
are arithmetic, not measurements.
"""

import importlib.metadata
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from stepjax import tournament
from stepjax.planning import flops, programs, slices
from stepjax.planning.programs import Program
from stepjax.run import kind
from stepjax.run.text_table import text_table
from stepjax.settings import Settings

STAGES = ("sft", "dpo", "search", "all")


class Planned(NamedTuple):
    """A program that was compiled.

    Attributes:
      program: the traced program.
      fit: its memory.
      chip: the chip that it was compiled for.
      flops: per chip and call; per chip and decoding step for programs that sample.
    """

    program: Program
    fit: slices.Fit
    chip: slices.Chip
    flops: flops.Flops

    @property
    def total(self) -> int:
        """Bytes per chip while the program runs."""
        return self.fit.total + self.program.beside

    @property
    def fits(self) -> bool:
        """Whether the program and what lies beside it fit the chip."""
        return not self.fit.refused and self.total <= self.chip.memory

    @property
    def seconds(self) -> float:
        """Least seconds that the chip's peak and bandwidth allow."""
        executed = self.flops.products + self.flops.kernels * self.program.seen
        return max(executed / self.chip.flops, self.program.moved / self.chip.bandwidth)


class Work(NamedTuple):
    """How much text a run handles: the paper's numbers where it states them.

    Attributes:
      ift: IFT rows (paper).
      eft: EFT rows (paper).
      prompt: tokens of a problem with its instruction.
      steps: per solution (paper: 9.35 to 5.21 for the 7B models on MATH).
      step_tokens: tokens per step (paper: 61.6 to 113.1 for the same models).
      judge_prompt: tokens of the judge's instructions.
      explanation: tokens of an explanation with its verdict; our guess.
    """

    ift: int = 28_889
    eft: int = 4_179
    prompt: int = 170
    steps: int = 8
    step_tokens: int = 60
    judge_prompt: int = 350
    explanation: int = 200


def plan(
    settings: Settings,
    topology: str,
    stage: str = "all",
    utilisation: float = 0.4,
    suggest: bool = True,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Returns the plan of a run as text.

    Args:
      settings: of the run.
      topology: a grid name ("v5p:2x2x2") or a Cloud name ("v5p-16").
      stage: one of `STAGES`.
      utilisation: share of the chips' peak or bandwidth that is reached, for times.
      suggest: whether to look for the smallest slice of the family that fits.
      say: called with a line before and after each program is compiled, since all of
        them take minutes.

    Raises:
      ValueError: for unknown names, without libtpu, or for a mesh that does not fit.
    """
    if stage not in STAGES:
        raise ValueError(f"--stage={stage!r}; expected one of {STAGES}.")
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation={utilisation}; expected above 0, at most 1.")
    tpu_slice = slices.topology(topology)
    stages = STAGES[:-1] if stage == "all" else (stage,)
    devices = slices.devices(tpu_slice)
    host = slices.host_devices(tpu_slice, devices)
    planned = []
    for program in programs.programs(settings, devices, stages, host):
        planned.append(_said(program, tpu_slice, say))
    parts = [_title(settings, tpu_slice, devices), _table(planned)]
    parts += [f"{p.program.name}: {p.fit.refused}" for p in planned if p.fit.refused]
    if stage == "all":
        parts.append(_whole_run(settings, tpu_slice, planned, utilisation))
    if suggest:
        say(f"looking for the smallest {tpu_slice.family} slice that fits")
        best = smallest(settings, tpu_slice.family, stages, say=say)
        parts.append(
            f"smallest listed {tpu_slice.family} slice that fits: "
            + (f"{best} ({best.cloud}, {best.chips} chips)" if best else "none")
        )
    parts.append(
        "Compiled ahead of time, never run: a program that fits may still be wrong or "
        "slow. Times are the least that peak and bandwidth allow, not measurements."
    )
    return "\n\n".join(parts)


def _said(program: Program, tpu_slice: slices.Topology, say) -> Planned:
    """Compiles a program, and says so before and after."""
    chip = slices.CHIPS[tpu_slice.family]
    say(f"compiling {program.name!r} for {tpu_slice}")
    began = time.monotonic()
    item = compiled(program, chip)
    used, room = _gib(item.total), _gib(chip.memory)
    verdict = "fits" if item.fits else "does NOT fit"
    seconds = time.monotonic() - began
    say(f"  {used} of {room} GiB per chip: {verdict} (compiled in {seconds:.0f} s)")
    return item


def compiled(program: Program, chip: slices.Chip) -> Planned:
    """Compiles a program and counts it."""
    return Planned(program, slices.compile_fit(program.traced), chip, counted(program))


def counted(program: Program) -> flops.Flops:
    """Returns the FLOPs per chip of one call, or of one decoding step if it samples."""
    whole = flops.count(program.traced, program.devices, trips=1 / program.loops)
    if not program.sequences:
        return whole
    before = flops.count(program.traced, program.devices, trips=0)
    return flops.Flops(*(a - b for a, b in zip(whole, before, strict=True)))


def smallest(
    settings: Settings,
    family: str,
    stages: tuple[str, ...],
    *,
    say: Callable[[str], None] = lambda text: None,
) -> slices.Topology | None:
    """Returns the smallest listed slice that every program fits, None when none does.

    The settings' mesh must leave an axis open (-1), and slots must divide.

    Args:
      settings: of the run.
      family: of chips, one of `slices.CHIPS`.
      stages: of "sft", "dpo" and "search".
      say: called with lines about what is tried.
    """
    chip = slices.CHIPS[family]
    for tpu_slice in slices.listed(family):
        try:
            devices = slices.devices(tpu_slice)
            host = slices.host_devices(tpu_slice, devices)
            todo = list(programs.programs(settings, devices, stages, host))
        except ValueError:  # this slice does not divide the batch or the heads
            say(f"{tpu_slice}: does not divide the batch, the slots or the heads")
            continue
        if any(p.arguments + p.beside > chip.memory for p in todo):
            say(f"{tpu_slice}: too small for the arguments of a program")
            continue
        if all(_said(program, tpu_slice, say).fits for program in todo):
            return tpu_slice
    return None


# The text.


def _title(settings, tpu_slice: slices.Topology, devices: list) -> str:
    mesh = ", ".join(f"{name} {size}" for name, size in settings.mesh._asdict().items())
    hosts = len({device.process_index for device in devices})
    version = importlib.metadata.version("libtpu")
    return (
        f"{tpu_slice} = {tpu_slice.cloud}: {tpu_slice.chips} chips, {hosts} hosts; "
        f"mesh {mesh}; libtpu {version}"
    )


def _gib(size: float) -> str:
    return f"{size / slices.GIB:.2f}"


def _table(planned: list[Planned]) -> str:
    rows = []
    for item in planned:
        program, fit = item.program, item.fit
        per = "step" if program.sequences else "call"
        rows.append(
            {
                "program (GiB per chip)": program.name,
                "arguments": _gib(fit.arguments or program.arguments),
                "temporaries": "-" if fit.refused else _gib(fit.temporaries),
                "beside": _gib(program.beside),
                "total": _gib(item.total),
                "limit": _gib(item.chip.memory),
                "fits": "yes" if item.fits else "NO",
                "TFLOP/chip": f"{item.flops.products / 1e12:.3g} per {per}",
                "+ attention": f"{item.flops.kernels * program.seen / 1e12:.3g}",
                "executed/ideal": f"{item.flops.products / program.ideal:.3f}",
                "at least": f"{item.seconds * 1e3:.3g} ms",
            }
        )
    return text_table(rows)


def _whole_run(settings, tpu_slice, planned: list[Planned], utilisation: float) -> str:
    work, times = Work(), {}
    by_name = {item.program.name: item for item in planned}
    length = settings.train.row_length

    def training(name: str, examples: int, tokens: float, batch: int):
        """Updates whose batches fill as many rows as their tokens need."""
        rows = max(1, math.ceil(batch * tokens / length))
        ways = tpu_slice.chips // settings.mesh.tensor
        full = math.ceil(batch / ways) * ways
        share = math.ceil(rows / ways) * ways / full
        updates = math.ceil(examples / batch)
        return updates, by_name[name].seconds * min(share, 1.0)

    solution = work.prompt + work.steps * work.step_tokens
    judgment = work.judge_prompt + solution / 2 + 2 * work.step_tokens
    phase = settings.sft.phases[0]
    epochs = max(phase.epochs, 1)
    examples = work.ift + work.eft
    mean = work.ift * solution + work.eft * (judgment + work.explanation)
    batch = phase.batch_size
    times["SFT: M1"] = [training("sft", examples * epochs, mean / examples, batch)]
    width, slots, judge = settings.search.width, settings.search.slots, settings.judge
    every_call = kind.choose(settings).judgments.calls
    rounds = tournament.rounds(judge.schedule, width, every_call)
    rows, share = tournament.layout(judge.schedule, width, every_call, judge.rows)
    layers, _ = programs.weights_of(programs.model_config(settings))
    speed = slices.CHIPS[tpu_slice.family].flops
    ways = settings.sampling_tensor
    counts = settings.data.counts(settings.iterations)
    if settings.iterations and not counts:
        raise ValueError(
            "data.questions=(); expected a number for each iteration, because a plan "
            "reads no files."
        )
    for number, questions in enumerate(counts, 1):
        calls = math.ceil(questions * work.steps / slots)
        steps = [(calls * work.step_tokens, by_name["search: candidates"].seconds)]
        # Contexts are computed once: in solving only the prompts, since steps are
        # appended by a copy, and in judging the prompts and the steps.
        tokens = questions * (work.prompt + work.judge_prompt + solution)
        steps.append((1, 2 * layers * tokens / tpu_slice.chips / speed))
        if "judge: judgments" in by_name:
            judged = by_name["judge: judgments"]
            asked = sum(math.ceil(n / rows) for n in rounds)
            steps.append((calls * asked * work.explanation, judged.seconds))
            # Before an explanation is written, the two candidates of its call are
            # computed: the second one, and the first one once per `share` calls.
            candidates = 1 + 1 / share if share > 1 else 2
            tokens = judged.program.sequences * candidates * work.step_tokens
            steps.append((calls * asked, 2 * layers * tokens / ways / speed))
        times[f"search: M{number}"] = steps
        tree = work.prompt + 2 * work.steps * work.step_tokens  # tokens per solution
        update = questions * work.steps, tree / work.steps, settings.dpo.batch_size
        passes = [name for name in ("dpo", "dpo: reference") if name in by_name]
        times[f"DPO: M{number + 1}"] = [training(name, *update) for name in passes]
    rows, total = [], 0.0
    for name, steps in times.items():
        seconds = sum(count * each for count, each in steps) / utilisation
        total += seconds
        rows.append(_hours(name, f"{steps[0][0]}", seconds, tpu_slice.chips))
    rows.append(_hours("all", "", total, tpu_slice.chips))
    assumed = ", ".join(f"{k} {v}" for k, v in work._asdict().items())
    return (
        text_table(rows)
        + f"\nAt {utilisation:.0%} of peak or bandwidth. Compiling, loading, going "
        f"back and evaluation are not counted. Assumed: {assumed}."
    )


def _hours(name: str, calls: str, seconds: float, chips: int) -> dict[str, str]:
    return {
        "stage": name,
        "updates or decoding steps": calls,
        "hours": f"{seconds / 3600:.2f}",
        "chip-hours": f"{seconds * chips / 3600:.1f}",
    }
