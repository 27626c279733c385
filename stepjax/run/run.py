"""What every stage of a run works with: its directory, data, model and devices.

On several hosts all of them do this: training is one program, what samples is split
by problems, and the first host writes what is written once (`stepjax.lm.hosts`).
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from stepjax import dpo, forest, propose, records, search, sft, tournament
from stepjax import judge as judging
from stepjax import pairs as preferences
from stepjax.codec import Codec
from stepjax.lm import checkpoint, hosts, sharding, tokenizer, train, weights
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler
from stepjax.run import checks, data, rundir
from stepjax.run.monitor import Monitor, usage_line
from stepjax.worlds import arithmetic


class Engine:
    """A run directory with what its stages share.

    Attributes:
      config: the settings.
      dir: the run directory.
      monitor: progress bars and metrics.
      mesh: the devices of training.
      codec: tokenizer and templates.
      model: the decoder on `mesh`.
      sampler: the decoder on the devices of this host, where it samples and judges.
      slots: problems in flight on this host.
      phases: the phases of SFT.
      dpo_options: settings of the loss.
    """

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
        checks.check_settings(config)
        self.phases = [_phase(p) for p in config.sft.phases]
        self.dpo_options = dpo.Options(
            **{
                name: config.dpo[name]
                for name in ("beta", "label_smoothing", "nll_weight", "reference")
            }
        )
        with self.monitor.during("making the data and the tokenizer"):
            self._prepare()
        ids = tokenizer.load(self.dir.path / "tokenizer")
        self.codec = Codec(ids, data.templates(config))
        shape = data.model_config(config, ids.vocab_size)
        self.model = lm.Decoder(shape, self.mesh)
        tensor = config.search.tensor or config.mesh.tensor
        self.sampler = lm.Decoder(shape, sharding.host_mesh(tensor))
        self.slots = config.search.slots // hosts.count()  # of this host
        with self.monitor.during("checking the data"):
            self._check()
        checks.check_mesh(config, self.model, self.sampler)

    def _check(self) -> None:
        files = {
            f"questions_{n}": self.dir.read(f"questions_{n}", records.Question)
            for n in range(1, self.config.iterations + 1)
        }
        for name in self.dir.benchmarks():
            files[name] = self.dir.read(name, records.Problem)
        checks.check_budgets(self.config, self.codec, files)
        if not (self.dir.model(1) / "manifest.json").exists():
            self.sft_sources  # noqa: B018  reads and checks the rows

    def _prepare(self) -> None:
        """Writes the data files and the tokenizer, once."""
        folder = self.dir.path / "data"
        if self.dir.done(folder / "manifest.json", {}):
            return
        began = time.monotonic()
        files, counts = [], {}
        if hosts.first():
            texts = data.templates(self.config)
            data.make_tokenizer(self.config, self.dir.path / "tokenizer")
            counts = data.make_data(self.config, texts, folder)
            files = [f"{name}.jsonl" for name in counts]
            others = sorted((self.dir.path / "tokenizer").iterdir())
            files += [f"../tokenizer/{path.name}" for path in others]
        self.dir.commit(
            folder / "manifest.json", "prepare", began, {}, files, counts=counts
        )

    @property
    def is_right(self) -> Callable[[str, Sequence[str], str], bool] | None:
        """Whether (problem, steps so far, candidate) is right, where data can tell.

        Gold knowledge, for evaluation and for the oracle judge only. None where a
        candidate cannot be checked.
        """
        if self.config.data.world != "arithmetic":
            return None
        whole = self.config.search.unit == "solution"
        return arithmetic.is_right_solution if whole else arithmetic.is_right

    def params(self, number: int) -> Any:
        """Returns the parameters of M`number`, in their shardings.

        Raises:
          ValueError: when the model does not exist or is damaged.
        """
        if number == 0:
            with self.monitor.during("loading M0"):
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
        with self.monitor.during(f"loading M{number}"):
            return checkpoint.load_tree(
                self.dir.model(number) / "params", like, digests
            )

    def _initial_params(self) -> Any:
        init = self.config.model.init
        if init == "random":
            return train.init_params(self.model, self.mesh, self.config.seed)
        where = sharding.param_shardings(self.mesh, lm.abstract_params(self.model))
        folder = init.removeprefix("hf:")
        return weights.load_hf(folder, self.model.config, where)

    def sampling_params(self, number: int) -> Any:
        """Returns M`number` in the compute type, on this host's devices."""
        params, model = self.params(number), self.sampler
        where = sharding.param_shardings(model.mesh, lm.abstract_params(model))
        return sharding.on_this_host(lm.frozen(params, model.config.dtype), where)

    def save_model(
        self, number: int, stage: str, began: float, params, inputs, **extra
    ) -> None:
        """Writes M`number` and the manifest of the stage that made it."""
        folder = self.dir.model(number)
        with self.monitor.during(f"saving M{number}"):
            arrays = checkpoint.save_tree(folder / "params", params)
        self.dir.commit(
            folder / "manifest.json", stage, began, inputs, arrays=arrays, **extra
        )

    @functools.cached_property
    def sft_sources(self) -> tuple[dict[str, list], list[str]]:
        """Trees of the IFT and EFT rows that fit a row, and the ids of the others."""
        length = self.config.train.row_length
        weight = self.config.sft.verdict_weight
        ift = self.dir.read("ift", records.Solution)
        eft = self.dir.read("eft", self.judgment_type())
        trees = {
            "ift": [sft.solution_tree(self.codec, row) for row in ift],
            "eft": [sft.judgment_tree(self.codec, row, weight) for row in eft],
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

    def fit(
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
        every = self.config.train.checkpoint_every
        with self.monitor.during(f"M{number} {name}: preparing the optimizer"):
            state = train.init_state(params, optimizer)
            where = train.state_shardings(params, optimizer)
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

    def open_slots(self, params, capacity: int) -> Sampler:
        """Returns empty context caches of `capacity` tokens for the slots."""
        return Sampler(self.sampler, params, self.sampler.mesh, self.slots, capacity)

    def own_judge(self, sampler: Sampler, rows: int, share: int = 1) -> judging.Judge:
        """Returns the model as its own judge; see `judge.make_judge`."""
        judge = self.config.judge
        rated = judge.score == "rating"
        return judging.make_judge(
            sampler,
            self.codec,
            mode=judge.mode,
            score=judge.score,
            max_tokens=judge.rating_tokens if rated else judge.max_tokens,
            temperature=judge.temperature,
            top_p=judge.top_p,
            rows=rows,
            share=share,
            seed=self.config.seed,
        )

    def searches(
        self,
        params: Any,
        questions: Sequence[records.Question],
        iteration: int,
        by: str = "self",
        active: Mapping[int, search.State] | None = None,
        on_pause: Callable[[Mapping[int, search.State]], None] | None = None,
    ) -> Iterator[search.State]:
        """Searches the questions with the model; says how busy the devices were kept.

        Args:
          params: from `sampling_params`.
          questions: this host's.
          iteration: first integer of every key path.
          by: who judges, one of `judge.JUDGES`.
          active: see `search.step_search`.
          on_pause: see `search.step_search`.
        """
        options, seed = self.config.search, self.config.seed
        score, schedule = self.config.judge.score, self.config.judge.schedule
        most_tokens = options.max_step_tokens
        if options.unit == "solution":
            most_tokens = self.config.eval.max_tokens
        solving = self.open_slots(params, options.context_tokens)
        caches = [solving]
        if by == "random":
            judge = judging.random_judge(score, seed)
        elif by == "oracle":
            judge = judging.oracle_judge(self.is_right, self.codec, score, seed)
        else:
            judged = self.open_slots(params, self.config.judge.context_tokens)
            most = self.config.judge.rows
            layout = tournament.rows_of_a_call(schedule, options.width, score, most)
            judge = self.own_judge(judged, *layout)
            caches.append(judged)
        judge = tournament.scheduled(judge, schedule, score, seed)
        proposer = propose.make_proposer(
            solving,
            self.codec,
            unit=options.unit,
            width=options.width,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=most_tokens,
            iteration=iteration,
            seed=seed,
        )

        def fits(state: search.State) -> bool:
            held = len(propose.context_ids(self.codec, state))
            steps = [step.ids for step in state.steps]
            asked = judging.shared_context(
                self.codec, score, state.question.problem, steps
            )
            return (
                held + most_tokens <= options.context_tokens
                and len(asked) <= self.config.judge.context_tokens
            )

        def pause(active: Mapping[int, search.State]) -> None:
            # A run that goes on from here has empty caches; so does this one, so
            # that both compute the same bits.
            for sampler in caches:
                sampler.hold({slot: () for slot in range(self.slots)})
            on_pause(active)

        turns = []
        yield from search.step_search(
            questions,
            proposer,
            judge,
            slots=self.slots,
            iteration=iteration,
            score=score,
            on_tie=options.on_tie,
            max_expansions=options.max_expansions,
            fits=fits,
            active=active,
            on_pause=pause if on_pause else None,
            on_turn=turns.append,
        )
        if turns:
            self._say_usage(turns, caches)

    def _say_usage(self, turns: list[int], caches: list[Sampler]) -> None:
        named = zip(("candidates", "judgments"), caches, strict=False)
        useful = {name: c.made / c.turns for name, c in named if c.turns}
        self.monitor.say(usage_line(turns, self.slots, useful))

    def fitting(
        self, pairs: Sequence[preferences.Pair]
    ) -> tuple[list[forest.IdPair], int]:
        """Returns the pairs that fit a row of training, and how many do not."""
        ids = [pair.ids() for pair in pairs]
        length = self.config.train.row_length
        kept = [p for p in ids if sum(map(len, dataclasses.astuple(p))) <= length]
        return kept, len(ids) - len(kept)

    def judgment_type(self) -> type:
        """Returns the kind of the run's EFT rows: comparisons, or ratings."""
        rated = self.config.judge.score == "rating"
        return records.Rating if rated else records.Comparison

    def merged(self, items: list, name: str) -> list:
        """Returns the items of all hosts."""
        return hosts.merge(items, self.dir.path / "eval", name.replace(" ", "_"))


def _phase(settings: ml_collections.ConfigDict) -> sft.Phase:
    values = settings.to_dict()
    values["optimizer"] = train.OptimizerOptions(**values["optimizer"])
    return sft.Phase(**values)
