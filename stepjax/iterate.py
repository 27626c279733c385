"""The loop M0 → M1 → … → Mn over a run directory of finished stages.

Each stage writes its result and then a manifest: the digests of its inputs, of every
array and file, counts, seed, versions and seconds. The same command after a kill
finds the finished stages, checks that nothing under them changed, and goes on: at the
last saved state of a training, at the last closed problem of a search.

    DIR/config.json  data/  tokenizer/  metrics.jsonl  tensorboard/  eval/M1.json ...
    DIR/M1/{params,manifest.json,search.jsonl,pairs.jsonl,search.json}  M2/ ...

The search and DPO stages read questions without answers: no gold reaches them, unless
the settings ask for the oracle judge.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from stepjax import dpo, records, sft, trajectory
from stepjax import pairs as preferences
from stepjax.evaluation import stages, tables
from stepjax.lm import checkpoint, hosts, train
from stepjax.lm import model as lm
from stepjax.run import rundir
from stepjax.run.run import Engine
from stepjax.trajectory import State


def run(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> str:
    """Runs the whole loop, or what is left of it, and returns the final table.

    Args:
      config: the settings, see `stepjax.config`.
      workdir: the run directory; made when missing, continued when it is there.
    """
    this = Run(config, workdir)
    this.evaluate(0, ("greedy", "judge"))
    this.sft()
    this.evaluate(1)
    for number in range(1, config.iterations + 1):
        this.improve(number)
        this.evaluate(number + 1)
    return this.finish()


class Run:
    """A run directory with its settings; every method is one stage.

    Attributes:
      engine: what the stages share.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | os.PathLike):
        """Prepares the run; see `engine.Engine`."""
        self.engine = Engine(config, workdir)

    def improve(self, number: int) -> None:
        """Makes M`number + 1` from M`number`, in the way of the settings."""
        if self.engine.config.improve_by == "sft":
            self.more_sft(number)
        else:
            self.search(number)
            self.dpo(number)

    # M0 → M1.

    def sft(self) -> None:
        """Makes M1 from M0 by supervised fine-tuning."""
        engine, phases = self.engine, self.engine.phases
        inputs = engine.dir.data("ift") | engine.dir.data("eft")
        if not self._begun(1, inputs):
            return
        began = time.monotonic()
        _, dropped = engine.sft_sources
        if dropped:
            engine.monitor.say(
                f"sft: {len(dropped)} rows are longer than train.row_length="
                f"{engine.config.train.row_length} and are left out "
                f"(first: {dropped[0]})"
            )
        params, updates = engine.params(0), {}
        for order, phase in enumerate(phases):
            params, updates[phase.name] = self._sft_phase(
                1, params, phase, order, f"phase_{order}", order + 1 < len(phases)
            )
        counts = self._sft_sizes() | {"dropped": len(dropped), "updates": updates}
        self._save(1, "sft", began, params, inputs, counts)

    def more_sft(self, number: int) -> None:
        """Makes M`number + 1` by more of the last phase of SFT: a control experiment.

        As many updates as `dpo.updates` says, with the optimizer of DPO.
        """
        engine = self.engine
        config, data = engine.config, engine.dir.data("ift") | engine.dir.data("eft")
        inputs = engine.dir.made_by(number) | data
        if not self._begun(number + 1, inputs):
            return
        began, last, sizes = time.monotonic(), engine.phases[-1], self._sft_sizes()
        shares = {name: getattr(last, name) for name in sizes}
        if last.epochs:  # its shares are the data's own
            shares = {name: sizes[name] * (share > 0) for name, share in shares.items()}
        phase = dataclasses.replace(
            last,
            **shares,
            name=f"more_{number}",
            epochs=0,
            steps=config.dpo.updates[number - 1],
            stop_loss=0.0,
            optimizer=train.OptimizerOptions(**config.dpo.optimizer),
        )
        order = len(engine.phases) + number - 1
        params, updates = self._sft_phase(
            number + 1, engine.params(number), phase, order, "", False
        )
        counts = sizes | {"updates": updates}
        self._save(number + 1, "more_sft", began, params, inputs, counts)

    def _sft_sizes(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.engine.sft_sources[0].items()}

    def _sft_phase(self, number, params, phase, order, folder, last):
        engine, options = self.engine, self.engine.config.train
        return engine.fit(
            f"sft/{phase.name}",
            number,
            functools.partial(sft.loss, model=engine.model),
            params,
            None,
            sft.make_batches(
                phase,
                order,
                engine.sft_sources[0],
                mesh=engine.mesh,
                row_length=options.row_length,
                micro_batches=options.micro_batches,
                seed=engine.config.seed,
            ),
            sft.phase_steps(phase, self._sft_sizes()),
            phase.optimizer,
            engine.dir.model(number) / "train" / folder,
            stop_loss=phase.stop_loss,
            last=last,
        )

    def _begun(self, number: int, inputs: dict[str, str]) -> bool:
        """Returns whether M`number` is still to be made; tidies up when it is not."""
        folder = self.engine.dir.model(number)
        if self.engine.dir.done(folder / "manifest.json", inputs) is None:
            return True
        checkpoint.TrainSaver(folder / "train", 0).clear()
        return False

    def _save(self, number, stage, began, params, inputs, counts) -> None:
        self.engine.save_model(number, stage, began, params, inputs, counts=counts)
        folder = self.engine.dir.model(number)
        checkpoint.TrainSaver(folder / "train", 0).clear()

    # What Mi makes: searches and pairs.

    def search(self, number: int) -> None:
        """Lets M`number` search the questions of its iteration and makes its pairs."""
        engine = self.engine
        questions = engine.dir.read(f"questions_{number}", records.Question)
        inputs = engine.dir.made_by(number) | engine.dir.data(f"questions_{number}")
        folder = engine.dir.model(number)
        partial = folder / "search.partial.jsonl"
        if engine.dir.done(folder / "search.json", inputs):
            if hosts.first():
                rundir.delete_journals(partial)
            return
        began = time.monotonic()
        params = engine.sampling_params(number)
        journal = rundir.Journal(partial, inputs)
        mine = hosts.share(questions)
        active = {  # with another number of hosts they may be another's
            slot: state
            for slot, state in journal.active.items()
            if slot < engine.slots and state.question in mine
        }
        begun = {state.question.id for state in active.values()}
        begun |= journal.closed.keys()
        todo = [q for q in mine if q.id not in begun]
        name, closed = f"M{number} search", []

        def keep(active: Mapping[int, State]) -> None:
            journal.add(closed, active)
            closed.clear()

        done, by = sum(q.id in journal.closed for q in mine), engine.config.judge.by
        with engine.monitor.progress(name, len(mine), "problem", done) as move:
            for state in engine.searches(params, todo, number, by, active, keep):
                closed.append(state)
                move(1)
        if hosts.count() > 1:
            keep({})
            hosts.barrier(name)
            journal.read()
        found = journal.closed | {state.question.id: state for state in closed}
        states = [found[q.id] for q in questions]
        rows = [pair for state in states for pair in self._pairs(state, number)]
        if hosts.first():
            found = map(trajectory.to_row, states)
            records.write_jsonl(folder / "search.jsonl", found)
            records.write_jsonl(folder / "pairs.jsonl", rows)
        counts = preferences.summary(states) | {"pairs": len(rows)}
        files = ["search.jsonl", "pairs.jsonl"]
        engine.monitor.restart("search", f"M{number}")
        engine.monitor.log("search", f"M{number}", number, counts)
        engine.dir.commit(
            folder / "search.json", "search", began, inputs, files, counts=counts
        )
        if hosts.first():
            rundir.delete_journals(partial)

    def _pairs(self, state: State, number: int) -> list[preferences.Pair]:
        config = self.engine.config
        return preferences.pairs_of(
            state,
            self.engine.codec,
            model=f"M{number}",
            iteration=number,
            seed=config.seed,
            best_beats_all=config.pairs.best_beats_all,
            min_margin=config.pairs.min_margin,
        )

    # Mi → M(i+1).

    def dpo(self, number: int) -> None:
        """Makes M`number + 1` by step-DPO on the pairs that M`number` made."""
        engine = self.engine
        source, monitor = engine.dir.model(number), engine.monitor
        inputs = engine.dir.made_by(number)
        if not engine.dir.done(source / "search.json", inputs):
            raise ValueError(
                f"{source / 'search.json'} is missing; expected the finished search of "
                f"M{number}. Run `stepjax search --model=M{number}` first."
            )
        inputs["pairs"] = rundir.file_digest(source / "pairs.jsonl")
        if not self._begun(number + 1, inputs):
            return
        began = time.monotonic()
        pairs = records.read_jsonl(source / "pairs.jsonl", preferences.Pair)
        kept, dropped = engine.fitting(pairs)
        if dropped:
            monitor.say(
                f"dpo: {dropped} of {len(kept) + dropped} pairs are longer than "
                f"train.row_length={engine.config.train.row_length} and are left out"
            )
        params = engine.params(number)
        counts = {"pairs": len(kept), "dropped": dropped, "updates": 0}
        if kept:
            params, counts["updates"] = self._train_on(kept, number, params)
        else:
            monitor.say(
                f"dpo: M{number} made no preference pairs, so M{number + 1} is "
                f"M{number}. Ask more questions, or raise search.temperature."
            )
        self._save(number + 1, "dpo", began, params, inputs, counts)

    def _train_on(self, kept: Sequence, number: int, params) -> tuple[Any, int]:
        """Trains M`number` on its pairs; returns (params, updates)."""
        engine, config = self.engine, self.engine.config
        batches = dpo.make_batches(
            kept,
            mesh=engine.mesh,
            batch_size=config.dpo.batch_size,
            micro_batches=config.train.micro_batches,
            row_length=config.train.row_length,
            epochs=config.dpo.epochs,
            updates=config.dpo.updates[number - 1] if config.dpo.updates else 0,
            seed=config.seed + number,
        )
        reference = None
        if engine.dpo_options.reference == "live":
            reference = lm.frozen(params, engine.model.config.dtype)
        else:
            name = f"M{number + 1} reference"
            with engine.monitor.progress(name, len(batches), "batch") as move:
                batches = dpo.with_reference(
                    engine.model, params, batches, engine.mesh, lambda done: move(1)
                )
        loss = functools.partial(
            dpo.loss, model=engine.model, options=engine.dpo_options
        )
        return engine.fit(
            "dpo",
            number + 1,
            loss,
            params,
            reference,
            lambda step: train.put_batch(engine.mesh, batches[step]),
            len(batches),
            train.OptimizerOptions(**config.dpo.optimizer),
            engine.dir.model(number + 1) / "train",
        )

    def evaluate(
        self,
        number: int,
        modes: Iterable[str] = stages.MODES,
        benchmark: str = "test",
    ) -> dict[str, Any]:
        """Measures M`number`; see `measure.evaluate`."""
        return stages.evaluate(self.engine, number, modes, benchmark)

    def finish(self) -> str:
        """Prints the tables of the run and returns them as text."""
        engine = self.engine
        engine.monitor.close()
        title = f"{engine.dir.path}, seed {engine.config.seed}"
        found = tables.tables(engine.dir.path, engine.config.iterations + 1)
        titles = [title, "iterations", "seconds"]
        return "".join(
            engine.monitor.table(title, rows)
            for title, rows in zip(titles, found, strict=True)
            if rows
        )
