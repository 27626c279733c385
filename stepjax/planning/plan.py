"""What a run needs of a TPU slice, known before there is one: ``stepjax plan``.

Compiles the programs of a run ahead of time for a topology and prints, for each, its
memory on a chip, its FLOPs (of the traced program), those over the ideal (nothing
executed twice), and the time that the chip's peak and bandwidth allow; and for the
whole run M0 → Mn an estimate in chip-hours at a stated utilisation.

Nothing is run: that a program compiles and fits does not prove that it is right or
fast, and times are arithmetic, not measurements.
"""

import importlib.metadata
import math
from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from stepjax import tournament
from stepjax.planning import flops, programs, slices
from stepjax.planning.programs import Program
from stepjax.run.monitor import text_table

STAGES = ("sft", "dpo", "search", "all")


class Planned(NamedTuple):
    """A program and what became of it.

    Attributes:
      program: the program.
      fit: its memory.
      chip: what it was compiled for.
      flops: of a chip; of one turn for sampling.
    """

    program: Program
    fit: slices.Fit
    chip: slices.Chip
    flops: flops.Flops

    @property
    def total(self) -> int:
        """Bytes of a chip while it runs."""
        return self.fit.total + self.program.beside

    @property
    def fits(self) -> bool:
        """Whether the program and what lies beside it fit the chip."""
        return not self.fit.refused and self.total <= self.chip.memory

    @property
    def seconds(self) -> float:
        """What peak and bandwidth allow."""
        executed = self.flops.products + self.flops.kernels * self.program.seen
        return max(executed / self.chip.flops, self.program.moved / self.chip.bandwidth)


class Work(NamedTuple):
    """How much text a run handles; the paper's where it states it.

    Attributes:
      ift: IFT rows (paper).
      eft: EFT rows (paper).
      prompt: tokens of a problem with its instruction.
      steps: of a solution (paper: 9.35 to 5.21 for the 7B models on MATH).
      step_tokens: of a step (paper: 61.6 to 113.1, likewise).
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
    config: ml_collections.ConfigDict,
    topology: str,
    stage: str = "all",
    utilisation: float = 0.4,
    suggest: bool = True,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Returns the plan of a run as text.

    Args:
      config: the settings.
      topology: a grid name ("v5p:2x2x2") or a Cloud name ("v5p-16").
      stage: one of `STAGES`.
      utilisation: share of the chips' peak or bandwidth that is reached, for times.
      suggest: look for the smallest slice of the family that fits, too.
      say: told what comes next; compiling takes minutes.

    Raises:
      ValueError: for unknown names, without libtpu, or for a mesh that does not fit.
    """
    if stage not in STAGES:
        raise ValueError(f"--stage={stage!r}; expected one of {STAGES}.")
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation={utilisation}; expected above 0, at most 1.")
    where = slices.topology(topology)
    stages = STAGES[:-1] if stage == "all" else (stage,)
    devices = slices.devices(where)
    chip = slices.CHIPS[where.family]
    host = slices.host_devices(where, devices)
    traced = programs.programs(config, devices, stages, host)
    found = []
    for program in traced:
        say(f"compiling {program.name!r} for {where}")
        found.append(compiled(program, chip))
    parts = [_title(config, where, devices), _table(found)]
    parts += [f"{p.program.name}: {p.fit.refused}" for p in found if p.fit.refused]
    if stage == "all":
        parts.append(_whole_run(config, where, found, utilisation))
    if suggest:
        say(f"looking for the smallest {where.family} slice that fits")
        best = smallest(config, where.family, stages)
        parts.append(
            f"smallest listed {where.family} slice that fits: "
            + (f"{best} ({best.cloud}, {best.chips} chips)" if best else "none")
        )
    parts.append(
        "Compiled ahead of time, never run: what fits need not be right or fast. "
        "Times are lower bounds of peak and bandwidth, not measurements."
    )
    return "\n\n".join(parts)


def compiled(program: Program, chip: slices.Chip) -> Planned:
    """Compiles a program and counts it."""
    return Planned(program, slices.compile_fit(program.traced), chip, counted(program))


def counted(program: Program) -> flops.Flops:
    """Returns the FLOPs of a chip: of a call, or of a turn where it samples."""
    all_ = flops.count(program.traced, program.devices, turns=1 / program.loops)
    if not program.sequences:
        return all_
    before = flops.count(program.traced, program.devices, turns=0)
    return flops.Flops(all_.products - before.products)


def smallest(
    config: ml_collections.ConfigDict, family: str, stages: tuple[str, ...]
) -> slices.Topology | None:
    """Returns the smallest listed slice that every program fits, None when none does.

    The settings' mesh must leave an axis open (-1), and slots must divide.
    """
    chip = slices.CHIPS[family]
    for where in slices.listed(family):
        try:
            devices = slices.devices(where)
            host = slices.host_devices(where, devices)
            todo = list(programs.programs(config, devices, stages, host))
        except ValueError:
            continue  # this slice does not divide the batch or the heads
        if any(p.arguments + p.beside > chip.memory for p in todo):
            continue
        if all(compiled(program, chip).fits for program in todo):
            return where
    return None


# --- text ----------------------------------------------------------------------------


def _title(config, where: slices.Topology, devices: list) -> str:
    mesh = ", ".join(f"{name} {size}" for name, size in config.mesh.items())
    hosts = len({device.process_index for device in devices})
    version = importlib.metadata.version("libtpu")
    return (
        f"{where} = {where.cloud}: {where.chips} chips, {hosts} hosts; mesh {mesh}; "
        f"libtpu {version}"
    )


def _gib(size: float) -> str:
    return f"{size / slices.GIB:.2f}"


def _table(found: list[Planned]) -> str:
    rows = []
    for item in found:
        program, fit = item.program, item.fit
        per = "turn" if program.sequences else "call"
        rows.append(
            {
                "program (GiB of a chip)": program.name,
                "arguments": _gib(fit.arguments or program.arguments),
                "temporaries": "-" if fit.refused else _gib(fit.temporaries),
                "beside": _gib(program.beside),
                "total": _gib(item.total),
                "limit": _gib(item.chip.memory),
                "fits": "yes" if item.fits else "NO",
                "TFLOP/chip": f"{item.flops.products / 1e12:.3g} a {per}",
                "+ attention": f"{item.flops.kernels * program.seen / 1e12:.3g}",
                "executed/ideal": f"{item.flops.products / program.ideal:.3f}",
                "at least": f"{item.seconds * 1e3:.3g} ms",
            }
        )
    return text_table(rows)


def _whole_run(config, where, found: list[Planned], utilisation: float) -> str:
    work, times = Work(), {}
    by_name = {item.program.name: item for item in found}
    length = config.train.row_length

    def training(name: str, examples: int, tokens: float, batch: int):
        """Updates whose batches fill as many rows as their tokens need."""
        rows = max(1, math.ceil(batch * tokens / length))
        ways = where.chips // config.mesh.tensor
        full = math.ceil(batch / ways) * ways
        share = math.ceil(rows / ways) * ways / full
        updates = math.ceil(examples / batch)
        return updates, by_name[name].seconds * min(share, 1.0)

    solution = work.prompt + work.steps * work.step_tokens
    judgment = work.judge_prompt + solution / 2 + 2 * work.step_tokens
    phase = config.sft.phases[0]
    epochs = max(phase.epochs, 1)
    examples = work.ift + work.eft
    mean = work.ift * solution + work.eft * (judgment + work.explanation)
    batch = phase.batch_size
    times["SFT: M1"] = [training("sft", examples * epochs, mean / examples, batch)]
    width, slots, judge = config.search.width, config.search.slots, config.judge
    rounds = tournament.rounds(judge.schedule, width, judge.score)
    rows, share = tournament.rows_of_a_call(
        judge.schedule, width, judge.score, judge.rows
    )
    layers, _ = programs.weights_of(programs.model_config(config))
    speed = slices.CHIPS[where.family].flops
    ways = config.search.tensor or config.mesh.tensor
    for number in range(1, config.iterations + 1):
        questions = config.data.questions[number - 1]
        calls = math.ceil(questions * work.steps / slots)
        steps = [(calls * work.step_tokens, by_name["search: candidates"].seconds)]
        # Contexts: of solving (its steps are appended, not read), and of judging.
        tokens = questions * (work.prompt + work.judge_prompt + solution)
        steps.append((1, 2 * layers * tokens / where.chips / speed))
        if "judge: judgments" in by_name:
            judged = by_name["judge: judgments"]
            asked = sum(math.ceil(n / rows) for n in rounds)
            steps.append((calls * asked * work.explanation, judged.seconds))
            # Questions are read before their explanations are written.
            read = 1 + 1 / share if share > 1 else 2  # steps a judgment
            tokens = judged.program.sequences * read * work.step_tokens
            steps.append((calls * asked, 2 * layers * tokens / ways / speed))
        times[f"search: M{number}"] = steps
        tree = work.prompt + 2 * work.steps * work.step_tokens  # of a solution
        update = questions * work.steps, tree / work.steps, config.dpo.batch_size
        passes = [name for name in ("dpo", "dpo: reference") if name in by_name]
        times[f"DPO: M{number + 1}"] = [training(name, *update) for name in passes]
    rows, total = [], 0.0
    for name, steps in times.items():
        seconds = sum(count * each for count, each in steps) / utilisation
        total += seconds
        rows.append(_hours(name, f"{steps[0][0]}", seconds, where.chips))
    rows.append(_hours("all", "", total, where.chips))
    assumed = ", ".join(f"{k} {v}" for k, v in work._asdict().items())
    return (
        text_table(rows)
        + f"\nAt {utilisation:.0%} of peak or bandwidth, without compiling, loading, "
        f"going back and evaluation. Assumed: {assumed}."
    )


def _hours(name: str, calls: str, seconds: float, chips: int) -> dict[str, str]:
    return {
        "stage": name,
        "updates or turns": calls,
        "hours": f"{seconds / 3600:.2f}",
        "chip-hours": f"{seconds * chips / 3600:.1f}",
    }
