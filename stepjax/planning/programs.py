"""The programs of a run, traced for the devices of a slice that need not exist.

Batches are the largest that the settings allow: every sequence of SFT fills a row and
is scored whole, every pair of DPO has a row of its own, every context is full.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from stepjax import dpo, forest, sft, tournament
from stepjax.lm import draws, forest_kernel, generate, int8, lora, sharding, train
from stepjax.lm import model as lm
from stepjax.planning import slices
from stepjax.run import kind
from stepjax.settings import Settings, dpo_batches
from stepjax.settings import model_config as known_config

_STOP_STATES = 64  # states of a stop table, at most
_TEMPLATE = 64  # tokens of the judge's template after the shared context


class Program(NamedTuple):
    """One program of a run, traced.

    Attributes:
      name: stage and what it does.
      traced: by ``jax.jit(...).trace``, with shardings of the slice.
      devices: chips that run it together.
      ideal: FLOPs per chip if nothing were executed twice, without attention.
      moved: bytes per chip that must at least be moved from or to HBM.
      arguments: bytes per chip that its arguments take.
      beside: bytes per chip that the stage's other arrays take at the same time.
      seen: share of the attention kernel's blocks that are not skipped.
      rows: (forest rows of one update, tokens of each row), of training.
      sequences: rows that a chip decodes at once; figures are then per decoding step.
      loops: while-loops of the decoding; the FLOPs of a step are their mean.
    """

    name: str
    traced: jax.stages.Traced
    devices: int
    ideal: float
    moved: float
    arguments: int
    beside: int = 0
    seen: float = 1.0
    rows: tuple[int, int] = (0, 0)
    sequences: int = 0
    loops: int = 1


def model_config(settings: Settings) -> lm.ModelConfig:
    """Returns the decoder's configuration, without reading any weights.

    It is that of a pretrained M0 whose files are there, else that of the settings.

    Raises:
      ValueError: when the files of M0 are not there and the settings do not tell the
        vocabulary, or when the decoder does not compute that model.
    """
    if settings.init == "random" and not settings.shape.vocab_size:
        raise ValueError(
            "model.vocab_size=0; expected the size of the vocabulary, since a plan "
            "makes no tokenizer. Set model.vocab_size."
        )
    kind, _, place = settings.init.partition(":")
    file = epath.Path(place) / "config.json" if kind == "hf" else epath.Path(place)
    if settings.init == "random" or file.exists():
        return known_config(settings, 0)
    if not settings.shape.vocab_size:
        raise ValueError(
            f"{file}: no such file; expected that of model.init={settings.init!r}. A "
            "plan needs model.vocab_size and the model's shape in the settings when "
            "the weights are not on this machine."
        )
    lora.check_rank(settings.shape)
    return settings.shape


def weights_of(config: lm.ModelConfig) -> tuple[int, int]:
    """Counts matrix parameters: (those of all layers, those of the unembedding)."""
    width, size = config.hidden_size, config.head_dim
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    layer = width * heads * size + 3 * width * config.intermediate_size
    return config.num_layers * layer, config.vocab_size * width


def programs(
    settings: Settings,
    devices: list,
    stages: tuple[str, ...],
    host: list | None = None,
) -> Iterator[Program]:
    """Yields the traced programs of some stages for the devices of a slice.

    Args:
      settings: of the run.
      devices: of the slice.
      stages: of "sft", "dpo" and "search".
      host: devices of one of its hosts, since each host samples alone; None for all.

    Raises:
      ValueError: when a mesh does not fit the devices or the model.
    """
    shape = model_config(settings)
    if {"sft", "dpo"} & set(stages):
        mesh = sharding.make_mesh(**settings.mesh._asdict(), devices=devices)
        model = lm.Decoder(shape, mesh)
        if "sft" in stages:
            yield _sft(settings, model)
        if "dpo" in stages:
            yield from _dpo(settings, model)
    if "search" in stages:
        host = devices if host is None else host
        yield from _search(settings, shape, host, len(devices) // len(host))


def _sft(settings, model) -> Program:
    phases = settings.sft.phases
    length, parts = settings.train.row_length, settings.train.micro_batches
    most = max(phase.batch_size for phase in phases)
    rows = forest.bucket(-(-most // parts), sharding.row_multiple(model.mesh))
    packed = forest.pack(
        [_longest_tree(settings)] * rows, length, rows=rows, scored=length
    )
    batch = jax.tree.map(lambda x: np.stack([x] * parts), packed)
    return _training(
        "sft",
        model,
        batch,
        loss=functools.partial(sft.loss, model=model),
        optimizer=phases[0].optimizer,
        dtype=settings.train.optimizer_dtype,
    )


def _longest_tree(settings) -> forest.Tree:
    """Returns an example that fills a row."""
    length = settings.train.row_length
    return forest.path_tree(range(length), [0.0] + [1.0] * (length - 1))


def _dpo(settings, model) -> Iterator[Program]:
    step, length = settings.search.max_step_tokens, settings.train.row_length
    if 2 * step >= length:
        raise ValueError(
            f"train.row_length={length} holds no pair of two steps of "
            f"search.max_step_tokens={step} and a context; expected at least "
            f"{2 * step + 1}. Raise it."
        )
    context = tuple(range(1, length - 2 * step))
    pairs = [
        forest.IdPair((n + 1, *context), (1,) * step, (2,) * step)
        for n in range(settings.dpo.batch_size)
    ]
    yield dpo_program(settings, model, pairs)
    if settings.dpo.loss.reference == "precomputed":
        yield _reference(model, _pair_batch(settings, model, pairs))


def dpo_program(
    settings: Settings, model: lm.Decoder, pairs: list[forest.IdPair]
) -> Program:
    """Returns the program of an update on the given pairs.

    With `judge.keep` as many EFT rows are beside them, each as long as a row can be.

    Args:
      settings: of the run, but the size of the batch is that of `pairs`.
      model: the decoder on the mesh of training.
      pairs: preferences of one update.
    """
    batch = _pair_batch(settings, model, pairs)
    options, keep = settings.dpo.loss, settings.judge.keep
    if keep:
        (batch,) = dpo.with_replay(
            [batch],
            [_longest_tree(settings)],
            mesh=model.mesh,
            batch_size=len(pairs),
            row_length=settings.train.row_length,
            seed=0,
        )
    return _training(
        "dpo",
        model,
        batch,
        loss=functools.partial(dpo.loss, model=model, options=options, keep=keep),
        optimizer=settings.dpo.optimizer,
        dtype=settings.train.optimizer_dtype,
        live=options.reference == "live",
    )


def _pair_batch(settings, model, pairs) -> dpo.Batch:
    size = len(pairs)
    return dpo_batches(settings, pairs, model.mesh, seed=0, batch_size=size)[0]


def _reference(model, batch: dpo.Batch) -> Program:
    arguments = _params(model), _on_mesh(model, batch)
    traced = dpo.reference_logps(model, model.mesh).trace(*arguments)
    ideal, taken = 2 * _parameter_tokens(model, batch.rows), _bytes(arguments)
    seen, size = _seen(batch.rows.subtree_end[0]), _size(batch.rows)
    name, chips = "dpo: reference", model.mesh.size
    return Program(name, traced, chips, ideal, taken, taken, seen=seen, rows=size)


def _training(
    name: str,
    model: lm.Decoder,
    batch: forest.Rows | dpo.Batch,
    *,
    loss: train.LossFunction,
    optimizer: train.OptimizerOptions,
    dtype: str = "float32",
    live: bool = False,
) -> Program:
    """Returns the program of an update; `live`: it also runs the reference.

    `dtype` is that of the optimizer's first moment.
    """
    mesh, chips = model.mesh, model.mesh.size
    transform = train.make_optimizer(optimizer, 10, dtype)
    fixed, trained = lora.split(_params(model))
    shardings = train.state_shardings(trained, transform)
    moments = jax.eval_shape(transform.init, trained)
    state = train.TrainState(trained, slices.spread(moments, shardings.opt_state))
    reference = lora.split(_params(model, model.config.dtype))[1] if live else None
    update = train.make_update(lora.behind(loss), transform, shardings)
    arguments = state, (fixed, reference), _on_mesh(model, batch)
    traced = update.trace(*arguments)
    parts = [batch.rows, batch.replay] if isinstance(batch, dpo.Batch) else [batch]
    parts = [rows for rows in parts if rows is not None]
    # 2 forward, 4 backward (2 with adapters: no gradient of W), 2 of the reference.
    passes = 4 + 2 * (not fixed) + 2 * live
    ideal = passes * sum(_parameter_tokens(model, rows) for rows in parts)
    # State once in and out; every pass reads whole matrices from HBM.
    item = jnp.dtype(model.config.dtype).itemsize
    weights = item * sum(weights_of(model.config)) / mesh.shape["tensor"]
    reads = sum(len(rows.tokens) for rows in parts) * (passes // 2)
    moved = 2 * _bytes(state) + reads * weights
    seen, taken = _seen(parts[0].subtree_end[0]), _bytes(arguments)
    size = sum(_size(rows)[0] for rows in parts), _size(parts[0])[1]
    return Program(name, traced, chips, ideal, moved, taken, seen=seen, rows=size)


def _parameter_tokens(model, rows: forest.Rows) -> float:
    """Counts, on one chip and in one pass, products of a parameter and a token."""
    layers, head = weights_of(model.config)
    return (layers * rows.tokens.size + head * rows.scored.size) / model.mesh.size


def _seen(ends: np.ndarray) -> float:
    """Returns the share of the attention kernel's blocks that are not skipped."""
    block = forest_kernel.block_size(ends.shape[1])
    padded = np.pad(ends, ((0, 0), (0, -ends.shape[1] % block)))
    return float(forest_kernel.visible_blocks(padded, block).mean())


def _size(rows: forest.Rows) -> tuple[int, int]:
    """Returns the rows of an update and their tokens."""
    length = rows.tokens.shape[-1]
    return rows.tokens.size // length, length


def _params(model: lm.Decoder, dtype: str | None = None):
    boxed = lm.abstract_params(model)
    shardings = sharding.param_shardings(model.mesh, boxed)
    every = functools.partial(slices.spread, lm.unboxed(boxed), shardings)
    base, _ = lora.split(every(model.config.dtype))  # of adapters, if there are any
    return lora.join(base, lora.split(every(dtype))[1])


def _sampling_params(model: lm.Decoder, weights: str):
    """Returns shapes of parameters as `search.weights` says; see `Run.for_sampling`."""
    params = _params(model, model.config.dtype)
    if weights == "full":
        return params
    splits = int8.shardings(jax.tree.map(lambda x: x.sharding, params))
    made = jax.eval_shape(lambda params: int8.quantised(params, lambda x: x), params)
    return slices.spread(made, splits)


def _on_mesh(model: lm.Decoder, batch):
    """Returns shapes of a batch, split as `train.put_batch` splits it."""
    return slices.spread(batch, train.batch_shardings(model.mesh, batch))


def _bytes(tree) -> int:
    """Returns the bytes of a chip that arrays with shardings take."""
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves
    )


# Sampling.


def _search(settings, shape: lm.ModelConfig, host: list, hosts: int):
    search, judge, tensor = settings.search, settings.judge, settings.sampling_tensor
    mesh = sharding.make_mesh(-1, 1, tensor, devices=host)
    model = lm.Decoder(shape, mesh)
    _params(model)  # refuses heads that do not divide
    ways = sharding.row_multiple(mesh)
    if search.slots % (ways * hosts):
        raise ValueError(
            f"search.slots={search.slots}; expected a multiple of the {ways * hosts} "
            f"data-parallel groups of {tensor} chips."
        )
    slots = search.slots // hosts
    sampling = Sampling(model, slots, search.weights)
    solving = sampling.contexts(search.context_tokens)
    judging = sampling.contexts(judge.context_tokens)
    solve, judged = _bytes(solving), _bytes(judging)
    if judge.model:  # a second model, or its adapters
        own = _sampling_params(model, search.weights)
        if search.weights == "full":  # then both share the base of adapters
            own = lora.split(own)[1]
        frozen = _bytes(own)
        solve, judged = solve + frozen, judged + frozen
    step, question = search.max_step_tokens, 2 * search.max_step_tokens + _TEMPLATE
    question = forest.bucket(question, 16)
    yield sampling.extend("search: prefill", solving, judged)
    layout = search.width, 1
    yield sampling.sample(
        "search: candidates", solving, layout, fed=1, new=step, beside=judged
    )
    if search.redraw:
        fed = forest.bucket(step, 16)
        yield sampling.sample(
            "search: redraw", solving, layout, fed=fed, new=step, beside=judged
        )
    yield sampling.extend("judge: prefill", judging, solve)
    if judge.mode == "generate":
        calls = kind.choose(settings).judgments.calls
        layout = tournament.layout(judge.schedule, search.width, calls, judge.rows)
        new = judge.max_tokens
        yield sampling.sample(
            "judge: judgments", judging, layout, fed=question, new=new, beside=solve
        )
    new = settings.eval.max_tokens
    yield sampling.sample(
        "eval: greedy", solving, (1, 1), fed=1, new=new, beside=judged
    )


class Sampling(NamedTuple):
    """Programs that sample on the chips of one host."""

    model: lm.Decoder
    slots: int
    weights: str = "full"

    def contexts(self, capacity: int) -> lm.KeyValues:
        """Returns the shapes of context caches."""
        make = functools.partial(
            generate.empty_contexts, self.model.config, self.slots, capacity
        )
        shardings = sharding.split_caches(self.model.mesh)
        return slices.spread(jax.eval_shape(make), shardings)

    def _shape(self, *shape, dtype=jnp.int32, split=True):
        spec = PartitionSpec(sharding.ROWS) if split else PartitionSpec()
        own = NamedSharding(self.model.mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=own)

    def _weights(self) -> tuple[float, float]:
        """Returns the parameters of a chip (layers, unembedding)."""
        ways = self.model.mesh.shape["tensor"]
        layers, head = weights_of(self.model.config)
        return layers / ways, head / ways

    def _groups(self) -> int:
        return self.slots // sharding.row_multiple(self.model.mesh)

    def extend(self, name, contexts, beside) -> Program:
        """Returns the program that computes contexts, of full length."""
        slots, capacity = self.slots, contexts.key.shape[3]
        params = _sampling_params(self.model, self.weights)
        lengths, tokens = self._shape(slots), self._shape(slots, capacity)
        addition = generate.Addition(lengths, lengths, tokens, lengths)
        arguments = params, contexts, addition
        traced = generate.extend.trace(self.model, *arguments, bucket=capacity)
        layers, _ = self._weights()
        ideal = 2 * layers * self._groups() * capacity
        taken = _bytes(arguments)
        return Program(name, traced, self.model.mesh.size, ideal, taken, taken, beside)

    def sample(self, name, contexts, layout, *, fed, new, beside) -> Program:
        """Returns the program that samples; figures are per decoding step.

        Args:
          name: of the program.
          contexts: shapes from `contexts`.
          layout: rows of a group, and how many consecutive rows share a lead; if more
            than 1, the lead is the first half of the prompt.
          fed: prompt tokens of a row.
          new: most new tokens of a row.
          beside: see `Program`.
        """
        slots, capacity = self.slots, contexts.key.shape[3]
        width, share = layout
        leads = ()
        if share > 1:
            fed = forest.bucket(fed // 2, 16)
            tokens = self._shape(slots, width // share, fed)
            leads = (generate.Leads(tokens, self._shape(slots, width // share)),)
        params = _sampling_params(self.model, self.weights)
        scalar = functools.partial(self._shape, split=False)
        lengths = self._shape(slots)
        behind = None if fed == 1 else lengths
        prefix = generate.Prefix(contexts, behind, lengths, leads)
        rows = generate.Rows(
            prompts=self._shape(slots, width, fed),
            start=self._shape(slots, width),
            active=self._shape(slots, width, dtype=jnp.bool_),
            paths=self._shape(slots, width, draws.PATH_LENGTH, dtype=jnp.uint32),
        )
        decoding = generate.Decoding(
            seed=scalar(dtype=jnp.uint32),
            temperature=scalar(dtype=jnp.float32),
            top_p=scalar(dtype=jnp.float32),
            stops=scalar(_STOP_STATES, self.model.config.vocab_size),
            vocab=scalar(),
            budget=scalar(),
        )
        arguments = params, prefix, rows, decoding
        traced = generate.sample.trace(
            self.model, *arguments, bucket=capacity, capacity=new, keep=fed == 1
        )
        layers, head = self._weights()
        sequences = self._groups() * width
        item = jnp.dtype(self.model.config.dtype).itemsize
        read = layers * (1 if self.weights == "int8" else item) + head * item
        led = fed / share if leads else 0
        own = sequences * (led + fed + new / 2) / (self._groups() * capacity)
        cached = _bytes(contexts) * (1 + own)
        return Program(
            name,
            traced,
            self.model.mesh.size,
            2 * (layers + head) * sequences,
            read + cached,
            _bytes(arguments),
            beside,
            sequences=sequences,
            loops=len(generate.reaches(new)),
        )
