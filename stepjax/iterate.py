"""The loop M0 → M1 → … → Mn over a run directory of finished stages.

Each stage writes its result and then a manifest: the digests of its inputs, of every
array and file, counts, seed, versions and seconds. The same command after a kill
finds the finished stages, checks that nothing under them changed, and goes on: at the
last saved state of a training, at the last closed problem of a search.

    DIR/config.json  data/  tokenizer/  metrics.jsonl  tensorboard/  eval/M1.json ...
    DIR/M1/{params,manifest.json,search.jsonl,pairs.jsonl,search.json}  M2/ ...

The search and DPO stages read questions without answers: no gold reaches them.

On several hosts all of them run this: training is one program, what samples is split
by problems, and the first host writes what is written once (`stepjax.lm.hosts`).
"""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections

from stepjax import dpo, evaluate, prepare, records, rundir, search, sft, summary
from stepjax import judge as judging
from stepjax import pairs as preferences
from stepjax.encode import Codec
from stepjax.lm import checkpoint, hosts, sharding, tokenizer, train, weights
from stepjax.lm import model as lm
from stepjax.lm.slots import Slots
from stepjax.monitor import Monitor


def run(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> str:
    """Runs the whole loop, or what is left of it, and returns the final table.

    Args:
      config: the settings, see `stepjax.config`.
      workdir: the run directory; made when missing, continued when it is there.
    """
    this = Run(config, workdir)
    this.evaluate(0, ("greedy", "judge"))
    this.sft()
    for number in range(1, config.iterations + 1):
        this.evaluate(number)
        this.search(number)
        this.dpo(number)
    this.evaluate(config.iterations + 1)
    this.monitor.close()
    return this.table()


class Run:
    """A run directory with its settings; every method is one stage."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | os.PathLike):
        """Claims the directory, prepares the data, and makes every early check.

        Raises:
          ValueError: for settings or data that cannot work, or a directory of another
            configuration.
        """
        self.config = config.copy_and_resolve_references()
        self.dir = rundir.RunDirectory(self.config, workdir)
        try:
            self._begin()
        except BaseException:
            self.dir.give_back()
            raise

    def _begin(self) -> None:
        config = self.config
        self.monitor = Monitor(self.dir.path, quiet=not hosts.first())
        self.mesh = sharding.make_mesh(**config.mesh)
        prepare.check_settings(config)
        self.phases = [_phase(p) for p in config.sft.phases]
        self.dpo_options = dpo.Options(
            **{
                name: config.dpo[name]
                for name in ("beta", "label_smoothing", "nll_weight", "reference")
            }
        )
        self.prepare()
        ids = tokenizer.load(self.dir.path / "tokenizer")
        self.codec = Codec(ids, prepare.templates(config))
        shape = prepare.model_config(config, ids.vocab_size)
        self.model = lm.Decoder(shape, self.mesh)
        tensor = config.search.tensor or config.mesh.tensor
        self.sampler = lm.Decoder(shape, sharding.host_mesh(tensor))
        self.slots = config.search.slots // hosts.count()  # of this host
        self._check()
        prepare.check_mesh(config, self.model, self.sampler)

    def _check(self) -> None:
        files = {
            f"questions_{n}": self.dir.read(f"questions_{n}", records.Question)
            for n in range(1, self.config.iterations + 1)
        }
        files["test"] = self.dir.read("test", records.Problem)
        prepare.check_budgets(self.config, self.codec, files)
        if not (self.dir.model(1) / "manifest.json").exists():
            self._sft_sources  # noqa: B018  reads and checks the rows

    def prepare(self) -> None:
        """Writes the data files and the tokenizer, once."""
        folder = self.dir.path / "data"
        if self.dir.done(folder / "manifest.json", {}):
            return
        began = time.monotonic()
        files, counts = [], {}
        if hosts.first():
            texts = prepare.templates(self.config)
            prepare.make_tokenizer(self.config, self.dir.path / "tokenizer")
            counts = prepare.make_data(self.config, texts, folder)
            files = [f"{name}.jsonl" for name in counts]
            others = sorted((self.dir.path / "tokenizer").iterdir())
            files += [f"../tokenizer/{path.name}" for path in others]
        self.dir.commit(
            folder / "manifest.json", "prepare", began, {}, files, counts=counts
        )

    def params(self, number: int) -> Any:
        """Returns the parameters of M`number`, in their shardings.

        Raises:
          ValueError: when the model does not exist or is damaged.
        """
        if number == 0:
            return self._initial_params()
        path = self.dir.model(number) / "manifest.json"
        if not path.exists():
            raise ValueError(
                f"{self.dir.model(number)} is not finished; expected an earlier stage "
                "to have made it. Run `stepjax run` on the same --workdir."
            )
        shapes = lm.abstract_params(self.model)
        like = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            lm.unboxed(shapes),
            sharding.param_shardings(self.mesh, shapes),
        )
        digests = checkpoint.read_json(path)["arrays"]
        return checkpoint.load_tree(self.dir.model(number) / "params", like, digests)

    def _initial_params(self) -> Any:
        init = self.config.model.init
        if init == "random":
            return train.init_params(self.model, self.mesh, self.config.seed)
        where = sharding.param_shardings(self.mesh, lm.abstract_params(self.model))
        folder = init.removeprefix("hf:")
        return weights.load_hf(folder, self.model.config, where)

    def _sampling_params(self, number: int) -> Any:
        """Returns M`number` in the compute type, on this host's devices."""
        params, model = self.params(number), self.sampler
        where = sharding.param_shardings(model.mesh, lm.abstract_params(model))
        return sharding.on_this_host(lm.frozen(params, model.config.dtype), where)

    def _save_model(
        self, number: int, stage: str, began: float, params, inputs, **extra
    ) -> None:
        folder = self.dir.model(number)
        arrays = checkpoint.save_tree(folder / "params", params)
        self.dir.commit(
            folder / "manifest.json", stage, began, inputs, arrays=arrays, **extra
        )

    # M0 → M1.

    @functools.cached_property
    def _sft_sources(self) -> tuple[dict[str, list], list[str]]:
        length = self.config.train.row_length
        weight = self.config.sft.verdict_weight
        ift, eft = (
            self.dir.read(name, kind)
            for name, kind in (("ift", records.Solution), ("eft", records.Comparison))
        )
        trees = {
            "ift": [sft.solution_tree(self.codec, row) for row in ift],
            "eft": [sft.comparison_tree(self.codec, row, weight) for row in eft],
        }
        dropped = []
        for name, rows in (("ift", ift), ("eft", eft)):
            ids = [row.id for row in rows]
            trees[name], lost = sft.fitting(trees[name], ids, length, name)
            dropped += lost
        sizes = {name: len(t) for name, t in trees.items()}
        for phase in self.phases:
            sft.phase_steps(phase, sizes)
        return trees, dropped

    def sft(self) -> None:
        """Makes M1 from M0 by supervised fine-tuning."""
        inputs = self.dir.data("ift") | self.dir.data("eft")
        folder, config = self.dir.model(1), self.config
        saved = checkpoint.TrainSaver(folder / "train", 0)  # to go on after a kill
        if self.dir.done(folder / "manifest.json", inputs):
            saved.clear()
            return
        began = time.monotonic()
        trees, dropped = self._sft_sources
        if dropped:
            self.monitor.say(
                f"sft: {len(dropped)} rows are longer than train.row_length="
                f"{config.train.row_length} and are left out (first: {dropped[0]})"
            )
        sizes = {name: len(t) for name, t in trees.items()}
        params, updates = self.params(0), {}
        loss = functools.partial(sft.loss, model=self.model)
        for number, phase in enumerate(self.phases):
            params, updates[phase.name] = self._fit(
                f"sft/{phase.name}",
                1,
                loss,
                params,
                None,
                sft.make_batches(
                    phase,
                    number,
                    trees,
                    mesh=self.mesh,
                    row_length=config.train.row_length,
                    micro_batches=config.train.micro_batches,
                    seed=config.seed,
                ),
                sft.phase_steps(phase, sizes),
                phase.optimizer,
                folder / "train" / f"phase_{number}",
                stop_loss=phase.stop_loss,
                last=number + 1 < len(self.phases),
            )
        counts = sizes | {"dropped": len(dropped), "updates": updates}
        self._save_model(1, "sft", began, params, inputs, counts=counts)
        saved.clear()

    def _fit(
        self,
        name,
        number,
        loss,
        params,
        reference,
        batch_at,
        steps,
        options,
        folder,
        *,
        stop_loss=0.0,
        last=False,
    ):
        """Trains with a progress bar and metrics; returns (params, updates)."""
        optimizer = train.make_optimizer(options, steps)
        state = train.init_state(params, optimizer)
        where = train.state_shardings(params, optimizer)
        every = self.config.train.checkpoint_every
        saver = checkpoint.TrainSaver(folder, every, last=last)
        state, done, over = saver.restore(state)
        self.monitor.restart(name, f"M{number}", done)
        with self.monitor.progress(f"M{number} {name}", steps, "update", done) as move:
            shown = done

            def on_log(now: int, metrics: dict[str, float]) -> None:
                nonlocal shown
                self.monitor.log(name, f"M{number}", now, metrics)
                move(now - shown, f"loss {metrics['loss']:.4f}")
                shown = now

            state, done = train.fit(
                train.make_update(loss, optimizer, where),
                state,
                reference,
                batch_at,
                steps,
                saver=saver,
                done=done,
                finished=over,
                on_log=on_log,
                log_every=self.config.train.log_every,
                stop_loss=stop_loss,
            )
        return state.params, done

    # What Mi makes: searches and pairs.

    def _slots(self, params, capacity: int) -> Slots:
        return Slots(self.sampler, params, self.sampler.mesh, self.slots, capacity)

    def _judge(self, slots: Slots, rows: int) -> judging.Judge:
        judge = self.config.judge
        return judging.make_judge(
            slots,
            self.codec,
            mode=judge.mode,
            score=judge.score,
            max_tokens=judge.max_tokens,
            temperature=judge.temperature,
            top_p=judge.top_p,
            rows=rows,
            seed=self.config.seed,
        )

    def _searches(
        self, params, questions, iteration: int, active=None, on_pause=None
    ) -> Iterable[search.State]:
        """Searches; the last two arguments are those of `search.step_search`."""
        options = self.config.search
        solving = self._slots(params, options.context_tokens)
        judged = self._slots(params, self.config.judge.context_tokens)
        propose = search.make_proposer(
            solving,
            self.codec,
            width=options.width,
            temperature=options.temperature,
            top_p=options.top_p,
            max_step_tokens=options.max_step_tokens,
            iteration=iteration,
            seed=self.config.seed,
        )

        def fits(state: search.State) -> bool:
            held = len(search.context_ids(self.codec, state))
            steps = [step.ids for step in state.steps]
            asked = len(self.codec.judge_context(state.question.problem, steps))
            return (
                held + options.max_step_tokens <= options.context_tokens
                and asked <= self.config.judge.context_tokens
            )

        def pause(active: Mapping[int, search.State]) -> None:
            # A run that goes on from here has empty caches; so does this one, so
            # that both compute the same bits.
            for slots in (solving, judged):
                slots.hold({slot: () for slot in range(self.slots)})
            on_pause(active)

        return search.step_search(
            questions,
            propose,
            self._judge(judged, self.config.judge.rows),
            slots=self.slots,
            iteration=iteration,
            score=self.config.judge.score,
            on_tie=options.on_tie,
            max_expansions=options.max_expansions,
            fits=fits,
            active=active,
            on_pause=pause if on_pause else None,
        )

    def search(self, number: int) -> None:
        """Lets M`number` search the questions of its iteration and makes its pairs."""
        questions = self.dir.read(f"questions_{number}", records.Question)
        inputs = self.dir.made_by(number) | self.dir.data(f"questions_{number}")
        folder = self.dir.model(number)
        partial = folder / "search.partial.jsonl"
        if self.dir.done(folder / "search.json", inputs):
            if hosts.first():
                rundir.delete_journals(partial)
            return
        began = time.monotonic()
        params = self._sampling_params(number)
        journal = rundir.Journal(partial, inputs)
        mine = hosts.share(questions)
        active = {  # with another number of hosts they may be another's
            slot: state
            for slot, state in journal.active.items()
            if slot < self.slots and state.question in mine
        }
        begun = {state.question.id for state in active.values()}
        begun |= journal.closed.keys()
        todo = [q for q in mine if q.id not in begun]
        name, closed = f"M{number} search", []

        def keep(active: Mapping[int, search.State]) -> None:
            journal.add(closed, active)
            closed.clear()

        done = sum(q.id in journal.closed for q in mine)
        with self.monitor.progress(name, len(mine), "problem", done) as move:
            for state in self._searches(params, todo, number, active, keep):
                closed.append(state)
                move(1)
        if hosts.count() > 1:
            keep({})
            hosts.barrier(name)
            journal.read()
        found = journal.closed | {state.question.id: state for state in closed}
        states = [found[q.id] for q in questions]
        rows = [
            pair
            for state in states
            for pair in preferences.pairs_of(
                state,
                self.codec,
                model=f"M{number}",
                iteration=number,
                seed=self.config.seed,
                best_beats_all=self.config.pairs.best_beats_all,
            )
        ]
        if hosts.first():
            found = map(preferences.trajectory_row, states)
            records.write_jsonl(folder / "search.jsonl", found)
            records.write_jsonl(folder / "pairs.jsonl", rows)
        counts = preferences.summary(states) | {"pairs": len(rows)}
        files = ["search.jsonl", "pairs.jsonl"]
        self.monitor.restart("search", f"M{number}")
        self.monitor.log("search", f"M{number}", number, counts)
        self.dir.commit(
            folder / "search.json", "search", began, inputs, files, counts=counts
        )
        if hosts.first():
            rundir.delete_journals(partial)

    # Mi → M(i+1).

    def dpo(self, number: int) -> None:
        """Makes M`number + 1` by step-DPO on the pairs that M`number` made."""
        source, folder = self.dir.model(number), self.dir.model(number + 1)
        inputs = self.dir.made_by(number)
        if not self.dir.done(source / "search.json", inputs):
            raise ValueError(
                f"{source / 'search.json'} is missing; expected the finished search of "
                f"M{number}. Run `stepjax search --model=M{number}` first."
            )
        inputs["pairs"] = rundir.file_digest(source / "pairs.jsonl")
        saved = checkpoint.TrainSaver(folder / "train", 0)  # to go on after a kill
        if self.dir.done(folder / "manifest.json", inputs):
            saved.clear()
            return
        began, config = time.monotonic(), self.config
        rows = records.read_jsonl(source / "pairs.jsonl", preferences.Pair)
        ids = [row.ids() for row in rows]
        length = config.train.row_length
        kept = [p for p in ids if sum(map(len, dataclasses.astuple(p))) <= length]
        if len(kept) < len(ids):
            self.monitor.say(
                f"dpo: {len(ids) - len(kept)} of {len(ids)} pairs are longer than "
                f"train.row_length={length} and are left out"
            )
        params = self.params(number)
        counts = {"pairs": len(kept), "dropped": len(ids) - len(kept), "updates": 0}
        if not kept:
            self.monitor.say(
                f"dpo: M{number} made no preference pairs, so M{number + 1} is "
                f"M{number}. Ask more questions, or raise search.temperature."
            )
            self._save_model(number + 1, "dpo", began, params, inputs, counts=counts)
            return
        batches = dpo.make_batches(
            kept,
            mesh=self.mesh,
            batch_size=config.dpo.batch_size,
            micro_batches=config.train.micro_batches,
            row_length=length,
            epochs=config.dpo.epochs,
            seed=config.seed + number,
        )
        reference = None
        if self.dpo_options.reference == "live":
            reference = lm.frozen(params, self.model.config.dtype)
        else:
            name = f"M{number + 1} reference"
            with self.monitor.progress(name, len(batches), "batch") as move:
                batches = dpo.with_reference(
                    self.model, params, batches, self.mesh, lambda done: move(1)
                )
        params, counts["updates"] = self._fit(
            "dpo",
            number + 1,
            functools.partial(dpo.loss, model=self.model, options=self.dpo_options),
            params,
            reference,
            lambda step: train.put_batch(self.mesh, batches[step]),
            len(batches),
            train.OptimizerOptions(**config.dpo.optimizer),
            folder / "train",
        )
        self._save_model(number + 1, "dpo", began, params, inputs, counts=counts)
        saved.clear()

    # Evaluation: the only stage here that reads gold answers.

    def evaluate(
        self,
        number: int,
        modes: Iterable[str] = ("greedy", "judge", "search"),
        benchmark: str = "test",
    ) -> dict[str, Any]:
        """Measures M`number` and writes ``eval/``; returns mode → metrics.

        Args:
          number: of the model.
          modes: of "greedy", "judge" and "search".
          benchmark: "test" (the run's own), or the path of a file of problems.
        """
        config, result = self.config, {}
        own = benchmark == "test"
        path = self.dir.path / "data" / "test.jsonl" if own else pathlib.Path(benchmark)
        problems = records.read_jsonl(path, records.Problem)
        if not own:
            prepare.check_budgets(config, self.codec, {path.name: problems})
        params = None
        for mode in modes:
            inputs = {"benchmark": rundir.file_digest(path)}
            if mode == "judge":
                inputs = self.dir.data("heldout")
            if number:
                inputs |= self.dir.made_by(number)
            name = f"M{number}_{'heldout' if mode == 'judge' else path.stem}_{mode}"
            target = self.dir.path / "eval" / f"{name}.json"
            manifest = self.dir.done(target, inputs)
            if manifest is None:
                params = self._sampling_params(number) if params is None else params
                began = time.monotonic()
                made = getattr(self, f"_eval_{mode}")(number, params, problems)
                target.parent.mkdir(exist_ok=True)  # every host may be the first here
                self.monitor.restart(f"eval/{name}", f"M{number}")
                self.monitor.log(f"eval/{name}", f"M{number}", number, made["metrics"])
                manifest = self.dir.commit(
                    target, f"eval/{mode}", began, inputs, **made
                )
            result[mode] = manifest["metrics"]
        return result

    def _eval_greedy(self, number, params, problems):
        slots = self._slots(params, self.config.search.context_tokens)
        name, mine = f"M{number} eval greedy", hosts.share(problems)
        with self.monitor.progress(name, len(mine), "problem") as move:
            items = evaluate.greedy(
                slots,
                self.codec,
                mine,
                max_tokens=self.config.eval.max_tokens,
                on_done=move,
            )
        items = self._merged(items, name)
        return {"metrics": evaluate.greedy_metrics(items), "items": items}

    def _merged(self, items: list, name: str) -> list:
        """Returns the items of all hosts."""
        return hosts.merge(items, self.dir.path / "eval", name.replace(" ", "_"))

    def _eval_judge(self, number, params, problems):
        del problems
        rows, long = [], []
        for row in self.dir.read("heldout", records.Comparison):
            steps = [self.codec.step(text) for text in row.steps]
            size = len(self.codec.judge_context(row.problem, steps))
            fits = size <= self.config.judge.context_tokens
            (rows if fits else long).append(row)
        if long:
            self.monitor.say(
                f"eval: {len(long)} of {len(rows) + len(long)} held-out rows exceed "
                f"judge.context_tokens={self.config.judge.context_tokens} and are left "
                "out"
            )
        name, mine = f"M{number} eval judge", hosts.share(rows)
        with self.monitor.progress(name, len(mine), "row") as move:
            items = evaluate.judge_accuracy(
                self._judge(self._slots(params, self.config.judge.context_tokens), 1),
                self.codec,
                mine,
                slots=self.slots,
                on_done=move,
            )
        items = self._merged(items, name)
        metrics = evaluate.judge_metrics(items) | {"left_out": len(long)}
        return {"metrics": metrics, "items": items}

    def _eval_search(self, number, params, problems):
        problems = problems[: self.config.eval.search_count or None]
        questions = [records.Question(p.id, p.problem) for p in problems]
        name, found, mine = f"M{number} eval search", {}, hosts.share(questions)
        with self.monitor.progress(name, len(mine), "problem") as move:
            for state in self._searches(params, mine, 0):
                found[state.question.id] = preferences.trajectory_row(state)
                move(1)
        rows = self._merged([found[question.id] for question in mine], name)
        states = [preferences.trajectory_from_row(row) for row in rows]
        made = evaluate.searched(states, problems, self.codec)
        made["metrics"] |= preferences.summary(states)
        return made

    def table(self) -> str:
        """Prints the final table and the stages' seconds; returns them as text."""
        rows, seconds = summary.tables(self.dir.path, self.config.iterations + 1)
        title = f"{self.dir.path}, seed {self.config.seed}"
        text = self.monitor.table(title, rows)
        return text + self.monitor.table("seconds", seconds)


def _phase(settings: ml_collections.ConfigDict) -> sft.Phase:
    values = settings.to_dict()
    values["optimizer"] = train.OptimizerOptions(**values["optimizer"])
    return sft.Phase(**values)
