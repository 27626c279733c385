"""A run: its directory, settings, tokenizer and models, which every stage works with.

On several hosts, each host makes the same `Run`. Training is one program over all
devices; sampling is split by problems; the first host writes what is written once
(`stepjax.lm.hosts`).
"""

import functools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from stepjax import own_import, records, sft
from stepjax.codec import Codec
from stepjax.evaluation import benchmarks
from stepjax.evaluation.benchmark_paths import of_settings
from stepjax.lm import (
    checkpoint,
    files,
    hosts,
    int8,
    lora,
    sharding,
    tokenizer,
    train,
)
from stepjax.lm import model as lm
from stepjax.run import (
    banner,
    base,
    checks,
    compiles,
    kind,
    lock,
    manifest,
    models,
    more_questions,
    paths,
    prepare,
    ranges,
    rundir,
    wandb_curves,
    world_rows,
)
from stepjax.run import profile as profiling
from stepjax.run.monitor import Monitor
from stepjax.settings import from_config, model_config, templates


class Run:
    """A run that is ready: its data is made and every early check has passed.

    Attributes:
      loaded: folders of the models that were read or written, and are whole.
      settings: of the run, typed.
      dir: the run directory.
      monitor: progress bars and metrics.
      profiler: traces a few units of each stage, if it is asked to.
      mesh: the devices of training.
      codec: tokenizer and templates.
      model: the decoder on `mesh`, for training.
      local_model: the decoder on the devices of this host, for sampling and judging.
      slots: how many problems are in flight on this host.
      kind: what `judge.kind` decides.
      benchmarks: further files of problems that all models are measured on.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: str | os.PathLike,
        redo: str = "",
        *,
        dry_run: bool = False,
        keep: bool = False,
        locks: bool = True,
        measures: bool = False,
        profile: bool = False,
    ):
        """Claims the directory, prepares the data, and makes every early check.

        Args:
          config: the settings, see `stepjax.config`.
          workdir: the run directory.
          redo: a stage that may be deleted, see `rundir.RunDirectory`.
          dry_run: whether what `redo` takes away comes back at the end.
          keep: whether the directory keeps its own settings, see there.
          locks: whether no other command may write there meanwhile, see `stepjax.run.
            lock`; the lock stays until `lock.release`, or until the process ends.
          measures: whether models will be measured on `eval.benchmarks`, so that
            these files are read and checked.
          profile: whether some updates and turns are traced, see `stepjax.run.profile`.

        Raises:
          ValueError: for settings or data that cannot work, or a directory of another
            configuration, or one in which another command is at work.
        """
        config, workdir = paths.expanded(config), os.path.expanduser(workdir)
        if address := paths.no_run("workdir", os.fspath(workdir)):
            raise ValueError(address)
        ranges.check(config)
        self.loaded: set[pathlib.Path] = set()
        self._sources = of_settings(config.eval.benchmarks) if measures else []
        self.benchmarks: list[pathlib.Path] = []
        self.settings = from_config(config)
        wandb_curves.check(self.settings.wandb)
        by, proposed = self.settings.judge.by, self.settings.search.propose_by
        wrong = own_import.wrong(by, proposed)
        if wrong:
            raise ValueError("\n".join(wrong))
        how = {"dry_run": dry_run, "keep": keep}
        if locks and hosts.first():
            lock.take(pathlib.Path(workdir))
        try:
            self.dir = rundir.RunDirectory(config, workdir, redo, **how)
            traces = self.dir.path / "profile" if profile else None
            if locks and hosts.first():
                files.remove_left(self.dir.path)
            try:
                self._begin(traces)
            except BaseException:
                self.dir.give_back()
                raise
        except BaseException:
            lock.release(pathlib.Path(workdir))
            raise

    def _begin(self, traces: pathlib.Path | None) -> None:
        settings = self.settings
        self.monitor = Monitor(
            self.dir.path, quiet=not hosts.first(), wandb=settings.wandb
        )
        self.profiler = profiling.Profiler(traces, self.monitor.say)
        compiles.use_cache(settings.compile_cache, self.monitor.say)
        self.dir.say = self.monitor.say
        for line in self.dir.news:  # log.txt has them when they are accepted
            self.monitor.show(line)
        self.mesh = sharding.make_mesh(**settings.mesh._asdict())
        self.kind = kind.choose(settings, self.dir.path / "data")
        texts = world_rows.templates(settings.data.world)
        texts = templates(settings.texts, texts, tie=settings.judge.tie)
        with self.monitor.during("making the data and the tokenizer"):
            prepared = prepare.prepare(settings, texts, self.dir)
            if not self.dir.borrowed:
                more_questions.add(settings, texts, prepared)
        ids = tokenizer.load(self.dir.path / "tokenizer")
        self.codec = Codec(ids, texts)
        shape = model_config(settings, ids.vocab_size, self.dir.path / "tokenizer")
        self.model = lm.Decoder(shape, self.mesh)
        local_mesh = sharding.host_mesh(settings.sampling_tensor)
        self.local_model = lm.Decoder(shape, local_mesh)
        self.slots = settings.search.slots // hosts.count()
        with self.monitor.during("checking the data"):
            self._check()
        self._check_phases()
        place = banner.place_in(self.dir.path, settings, self.dir.is_new)
        for line in banner.lines(self.dir.path, place, self.model, settings.init):
            self.monitor.announce(line)

    def accept(self) -> None:
        """Says that the command goes on with these settings: nothing refused them."""
        self.dir.accept()
        for line in self.dir.news:
            self.monitor.keep(line)

    def _check(self) -> None:
        """Refuses, before anything is compiled, what could not work later."""
        settings = self.settings
        made = len(list(self.dir.path.glob("data/questions_*.jsonl")))
        asked = {
            f"questions_{n}": self.dir.read(f"questions_{n}", records.Question)
            for n in range(1, settings.iterations + 1)
            if n <= made or not self.dir.borrowed
        }
        for name in self.dir.benchmarks():
            asked[name] = self.dir.read(name, records.Problem)
        texts, folder = self.codec.templates, self.dir.path / "eval"
        for source in self._sources:
            path = benchmarks.file_of(source, folder, texts)
            asked[str(path)] = benchmarks.read(path, texts)
            for warning in benchmarks.repeated(path.name, asked[str(path)]):
                self.monitor.say(warning)
            self.benchmarks.append(path)
        makes_eft = self._makes_eft()
        if makes_eft:
            asked["tree_questions"] = self.dir.read("tree_questions", records.Question)
        checks.check_server(settings)
        checks.check_verdicts(settings, self.codec)
        checks.check_budgets(settings, self.codec, asked)
        window = self.model.config.sliding_window
        checks.check_window(settings, self.codec, asked, window)
        read = dict(asked)
        if not (self.dir.model(1) / "manifest.json").exists():
            read["ift"] = self.dir.rows("ift", records.Solution)
        for warning in checks.check_characters(self.codec, read):
            self.monitor.say(warning)
        if makes_eft:
            rows = {
                "ift": self.dir.rows("ift", records.Solution),
                "tree_questions": asked["tree_questions"],
            }
            if settings.prm.reads_labels:
                rows["labels"] = self.dir.rows("labels", records.StepLabels)
            checks.check_initial_data(settings, self.codec, rows)
        checks.check_mesh(settings.search.slots, self.model, self.local_model)

    def _check_phases(self) -> None:
        """Refuses phases of SFT that no rows are there for."""
        settings = self.settings
        if self._makes_eft():
            sft.phase_steps(settings.mcts.phase, self.ift_examples.sizes)
        elif not (self.dir.model(1) / "manifest.json").exists():
            for phase in settings.sft.phases:
                sft.phase_steps(phase, self.sft_examples.sizes)

    def _makes_eft(self) -> bool:
        """Whether the EFT rows of the run are still to be made."""
        made = manifest.is_whole(self.dir.path / "init" / "eft.json")
        return self.settings.data.make_eft and not made

    def tell(self, text: str) -> None:
        """Says that something was done by an earlier command.

        This is printed only: log.txt tells what happened, and nothing does.
        """
        if hosts.first():
            print(text, file=sys.stderr, flush=True)

    @functools.cached_property
    def sft_examples(self) -> sft.Examples:
        """The IFT and EFT rows of the run as trees; measured when first asked for."""
        eft = self.dir.rows("eft", self.kind.judgments.record)
        example, words = self.kind.judgments.example, self.settings.sft.verdict_words
        if words and self.settings.sft.verdict_weight == 1:
            self.monitor.say(
                f"sft.verdict_words={words} changes nothing with sft.verdict_weight=1, "
                "because these words get the weight of the verdict; expected another "
                "weight, or ()."
            )
        if words and eft:
            responses = (example(self.codec, row)[1] for row in eft)
            absent = sft.absent_words(self.codec, responses, words)
            if absent:
                self.monitor.say(
                    f"sft.verdict_words: none of the {len(eft)} EFT rows has "
                    f"{' or '.join(map(repr, absent))} as a whole word in this "
                    "spelling, so no token gets more weight for it."
                )
        return self._examples(
            eft,
            verdict_weight=self.settings.sft.verdict_weight,
            verdict_words=words,
            share=self.settings.sft.share_problems,
        )

    @functools.cached_property
    def ift_examples(self) -> sft.Examples:
        """The IFT rows of the run alone as trees, without those that are too long."""
        return self._examples((), verdict_weight=1.0, share=False)

    def _examples(self, eft: Sequence, *, share: bool, **weights: Any) -> sft.Examples:
        """Returns the IFT rows of the run and these EFT rows, see `sft.examples`."""
        ift = self.dir.rows("ift", records.Solution)
        rows = len(ift) + (2 if share else 1) * len(eft)
        with self.monitor.during("counting the tokens of SFT's rows", rows) as advance:
            return sft.examples(
                ift,
                eft,
                self.codec,
                example=self.kind.judgments.example,
                row_length=self.settings.train.row_length,
                share=share,
                on_rows=advance,
                **weights,
            )

    def shardings(self) -> Any:
        """Returns where each parameter lies on the devices of training."""
        return sharding.param_shardings(self.mesh, lm.abstract_params(self.model))

    @functools.cached_property
    def _fixed(self) -> tuple[dict, dict[str, str]]:
        """The base of adapters and its digest, see `base.fixed`; read once."""
        with self.monitor.during("loading M0"):
            return base.fixed(self.settings, self.dir.path, self.model)

    def params(self, number: int) -> Any:
        """Returns the parameters of M`number`, in their shardings.

        With adapters, the models share the arrays of their base.

        Raises:
          ValueError: when the model does not exist or is damaged.
        """
        if number:
            return self.load(self.dir.model(number))
        fixed, _ = self._fixed
        with self.monitor.during("loading M0"):
            trained = base.trained(self.settings, self.dir.path, self.model)
        return lora.join(fixed, trained)

    def load(self, folder: pathlib.Path) -> Any:
        """Returns the parameters in the folder of a finished model, in their shardings.

        Raises:
          ValueError: when the model is not finished, or its base is another one.
          Damaged: when it is damaged.
          OSError: when one of its files cannot be read, which does not mean that.
        """

        def load(path, digests):
            return checkpoint.load_tree(path, models.like(self.model), digests)

        with self.monitor.during(f"loading {folder.name}"):
            trained, digests = models.read(folder, load)
        fixed, base_digest = self._fixed
        base.check(digests, base_digest, folder / "manifest.json")
        self.loaded.add(folder)
        return lora.join(fixed, trained)

    def frozen(self, params: Any) -> Any:
        """Returns parameters in the compute type that no training changes.

        They are a copy; the base of adapters is shared, because nothing changes it.
        """
        fixed, trained = lora.split(params)
        return lora.join(fixed, lm.frozen(trained, self.model.config.dtype))

    def sampling_params(self, number: int) -> Any:
        """Returns M`number` as `load_for_sampling` does; a random M0 is made whole."""
        if number:
            return self.load_for_sampling(self.dir.model(number))
        own, form = self.local_model, self.settings.search.weights
        if self.settings.init == "random" or not models.in_pieces(own):
            return self.for_sampling(self.params(0))
        with self.monitor.during("loading M0"):
            return base.whole(self.settings, self.dir.path, own, own.config.dtype, form)

    def load_for_sampling(self, folder: pathlib.Path) -> Any:
        """Returns what `for_sampling` makes of a finished model.

        Unless `models.in_pieces` says otherwise, its float32 parameters are never on
        the devices all at once. See `load` for errors.
        """
        if not models.in_pieces(self.local_model):
            return self.for_sampling(self.load(folder))
        form = self.settings.search.weights
        with self.monitor.during(f"loading {folder.name}"):
            params = models.sampled(folder, self.local_model, form)
        self.loaded.add(folder)
        return params

    def for_sampling(self, params: Any) -> Any:
        """Returns parameters as `search.weights` says, on this host's devices.

        They are in the compute type, or their matrices are int8, see `lm.int8`.

        Raises:
          ValueError: when they are not finite.
        """
        model = self.local_model
        models.check_finite(params, model.config, "the model")
        shardings = sharding.param_shardings(model.mesh, lm.abstract_params(model))
        if self.settings.search.weights == "full":
            return sharding.on_this_host(self.frozen(params), shardings)
        with self.monitor.during("rounding the weights to int8"):
            params = int8.quantised(params, self.frozen)
            return sharding.on_this_host(params, int8.shardings(shardings))

    def save(self, folder: pathlib.Path, params: Any) -> dict[str, str]:
        """Writes the parameters of a model; returns their digests, for its manifest.

        Of a model with adapters only the adapters are written; the digest of their base
        is returned with theirs.
        Until the manifest is there, the model counts as unfinished.

        Raises:
          ValueError: when they are not finite.
        """
        name = f"{folder.name} after its training"
        models.check_finite(params, self.model.config, name)
        _, trained = lora.split(params)
        with self.monitor.during(f"saving {folder.name}"):
            digests = checkpoint.save_tree(folder / "params", trained)
        self.loaded.add(folder)
        return digests | self._fixed[1]

    def fit(
        self,
        params: Any,
        *,
        name: str,
        model: str,
        loss: train.LossFunction,
        batch_at: Callable[[int], Any],
        steps: int,
        optimizer: train.OptimizerOptions,
        folder: pathlib.Path,
        reference: Any = None,
        rows_at: Callable[[int], Sequence[str]] = lambda step: (),
        tokens_at: Callable[[int], tuple[int, int]] | None = None,
        stop_loss: float = 0.0,
        keep_last: bool = False,
    ) -> tuple[Any, int]:
        """Trains with a progress bar and metrics, from the last saved state if any.

        Args:
          params: where training starts; what training changes of them is donated, and
            the base of adapters is not.
          name: of the stage, for metrics.
          model: name of the model that is made, e.g. "M1".
          loss: see `train.make_update`.
          batch_at: number of an update → its batch on device.
          steps: most updates.
          optimizer: learning rate and schedule.
          folder: where training states are kept while the stage is not finished.
          reference: parameters that the loss compares with, or None.
          rows_at: number of an update → names of what its batch holds, for messages.
          tokens_at: number of an update → the tokens of its sequences laid out one by
            one, and those of its trees; with it, the metrics have the quotient of
            their sums over a log period, tree_token_ratio.
          stop_loss: training stops after a log period whose mean loss is below it; 0
            never stops it early.
          keep_last: also save the last state, because another phase follows.

        Returns:
          (parameters, updates done).

        Raises:
          FloatingPointError: when the loss or the gradient of an update is not finite,
            unless train.on_nonfinite="skip"; see `train.fit`.
        """
        options = self.settings.train
        transform = train.make_optimizer(optimizer, steps, options.optimizer_dtype)
        every = options.checkpoint_every
        fixed, params = lora.split(params)
        reference = None if reference is None else lora.split(reference)[1]
        loss = lora.behind(loss)
        with self.monitor.during(f"{model} {name}: preparing the optimizer"):
            state = train.init_state(params, transform)
            shardings = train.state_shardings(params, transform)
            say, skip = self.monitor.say, options.on_nonfinite == "skip"
            saver = checkpoint.TrainSaver(folder, every, last=keep_last, say=say)
            state, done, over = saver.restore(state)
        self.monitor.restart(name, model, done)
        title = f"{model} {name}"
        with (
            self.monitor.progress(title, steps, "update", done) as advance,
            self.profiler.of(title, "update") as before_update,
        ):
            shown, tokens, since = done, 0, time.monotonic()
            rates = train.learning_rates(optimizer, steps)

            def feed(step: int) -> Any:
                nonlocal tokens
                before_update()
                batch = batch_at(step)
                tokens += getattr(batch, "rows", batch).tokens.size
                return batch

            def on_update(now: int, note: str = "") -> None:
                nonlocal shown
                advance(now - shown, note)
                shown = now

            def on_log(now: int, metrics: dict[str, float]) -> None:
                nonlocal tokens, since
                seconds = time.monotonic() - since
                metrics = metrics | {"learning_rate": float(rates(now - 1))}
                if tokens_at:
                    first = (now - 1) // options.log_every * options.log_every
                    counts = [tokens_at(step) for step in range(first, now)]
                    plain, trees = map(sum, zip(*counts, strict=True))
                    metrics["tree_token_ratio"] = plain / trees
                speeds = {"tokens_per_second": tokens / max(seconds, 1e-9)}
                self.monitor.log(name, model, now, metrics, speeds=speeds)
                on_update(now, f"loss {metrics.get('loss', math.nan):.4f}")
                tokens, since = 0, since + seconds

            try:
                state, done = train.fit(
                    train.make_update(loss, transform, shardings, skip=skip),
                    state,
                    (fixed, reference),
                    feed,
                    steps,
                    saver=saver,
                    done=done,
                    finished=over,
                    on_log=on_log,
                    on_update=on_update,
                    on_skip=lambda text: say(f"{model} {name}: {text}"),
                    rows_at=rows_at,
                    log_every=options.log_every,
                    stop_loss=stop_loss,
                )
            except FloatingPointError as error:
                raise FloatingPointError(f"{model} {name}: {error}") from error
        return lora.join(fixed, state.params), done
