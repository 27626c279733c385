"""The settings of a run as typed, frozen values, made once from the config.

`from_config` reads the `ml_collections.ConfigDict` of `stepjax.config`; every stage
behind it takes `Settings`, a section of it, or plain keyword arguments. The sections
and fields have the names of the config, where each is explained with its unit and its
source in the paper.
"""

import stepjax.lm  # noqa: F401, says what to install when something is missing

# isort: split
import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
from jax.sharding import Mesh

from stepjax import dpo, forest, prompts, sft
from stepjax.lm import hf_config, lora, pretrained, train
from stepjax.lm import model as lm


@dataclasses.dataclass(frozen=True)
class Texts:
    """Templates of the prompts, before `templates` fills in the world's for ""."""

    solve: str
    judge: str
    single: str
    step: str
    verdict: str
    chat: str


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the data comes from: a built-in world, or files."""

    world: str
    questions: tuple[int, ...]
    operations: int
    guessed_share: float
    unseen_blocks: int
    taught_results: int
    unseen_results: int
    ift_count: int
    eft_count: int
    heldout_count: int
    test_count: int
    equations: str
    explanations: str
    ift_variants: int
    drills: int
    corrupted_count: int
    ift: str
    ift_format: str
    eft: str
    eft_format: str
    question_file: str
    question_format: str
    make_eft: bool
    test: str
    test_format: str
    strict: bool

    def counts(self, iterations: int) -> tuple[int, ...]:
        """Returns the questions of each iteration; the last count goes on.

        () where the questions of the file are dealt out to the iterations.
        """
        if not self.questions:
            return ()
        last = len(self.questions) - 1
        return tuple(self.questions[min(n, last)] for n in range(iterations))


@dataclasses.dataclass(frozen=True)
class Prm:
    """The process reward model, see `initial_data.prm`."""

    labels: str
    labels_format: str
    labels_count: int
    heldout_count: int
    prompt: str
    language_weight: float
    from_policy: bool
    phase: sft.Phase

    @property
    def learns(self) -> bool:
        """Whether there is a PRM; with "gold" the gold takes its place."""
        return self.labels != "gold"

    @property
    def reads_labels(self) -> bool:
        """Whether step labels come from a file or from a world."""
        return self.labels not in ("gold", "rollouts")


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Step labels from completions, see `initial_data.rollouts`."""

    problems: int
    solutions: int
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    hard: bool = False


@dataclasses.dataclass(frozen=True)
class Mcts:
    """Tree search for pairs of steps, see `initial_data.mcts`."""

    phase: sft.Phase
    questions: int
    question_file: str
    question_format: str
    width: int
    temperature: float
    top_p: float
    iterations: int
    depth: int
    max_steps: int
    rule: str
    exploration: float
    min_margin: float
    pairs_per_layer: int
    pairs_per_node: int
    undecided_share: float
    remember_tokens: int


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Who judges pairs and cuts solutions, see `initial_data.teacher`."""

    backend: str
    url: str
    model: str
    key_variable: str
    file: str
    temperature: float
    max_tokens: int
    concurrency: int
    requests_per_minute: int
    token_budget: int
    timeout: float
    retries: int
    undecided_margin: float


class MeshShape(NamedTuple):
    """Devices of training along each axis of the mesh; one may be -1, for the rest."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class Train:
    """What SFT and step-DPO have in common."""

    row_length: int
    micro_batches: int
    checkpoint_every: int
    log_every: int
    on_nonfinite: str
    optimizer_dtype: str


@dataclasses.dataclass(frozen=True)
class Sft:
    """M0 → M1."""

    phases: tuple[sft.Phase, ...]
    verdict_weight: float
    verdict_words: tuple[str, ...]
    share_problems: bool
    from_policy: bool


@dataclasses.dataclass(frozen=True)
class Search:
    """How a model searches its questions."""

    propose_by: str
    width: int
    temperature: float
    top_p: float
    redraw: float
    max_expansions: int
    on_tie: str
    on_reject: str
    max_step_tokens: int
    context_tokens: int
    slots: int
    tensor: int
    weights: str


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who judges, and how."""

    kind: str
    mode: str
    by: str
    keep: float
    learn: str
    model: str
    score: str
    value: str
    votes: int
    tie: bool
    schedule: str
    temperature: float
    top_p: float
    max_tokens: int
    context_tokens: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Srlm:
    """The baseline that rates whole solutions, see `stepjax.srlm`."""

    max_tokens: int
    rate: str
    rating: str


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which preference pairs are kept."""

    best_beats_all: bool
    min_margin: float


@dataclasses.dataclass(frozen=True)
class Dpo:
    """Mi → M(i+1).

    Attributes:
      loss: settings of the loss.
      optimizer: learning rate and schedule.
      batch_size: pairs per update.
      epochs: passes over the pairs.
      updates: updates of each iteration; () lets `epochs` decide.
    """

    loss: dpo.Options
    optimizer: train.OptimizerOptions
    batch_size: int
    epochs: int
    updates: tuple[int, ...]

    def updates_of(self, iteration: int) -> int:
        """Returns the updates of an iteration, counted from 1; 0: `epochs` decides."""
        return self.updates[iteration - 1] if self.updates else 0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a model is measured."""

    max_tokens: int
    search_count: int
    grading: str
    benchmarks: tuple[str, ...]

    @property
    def strict(self) -> bool:
        """Whether answers are graded strictly."""
        return self.grading == "strict"


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
      seed: every draw of the run is folded from it.
      iterations: rounds of search and step-DPO.
      improve_by: "dpo" or "sft".
      init: where M0 comes from: "random", "hf:DIR" or "gguf:FILE".
      shape: the decoder of the settings, with its adapters; see `model_config`.
      tokenizer: its folder or file, or "".
      compile_cache: folder of compiled programs, "auto" or "".
      wandb: project of Weights & Biases, or "".
      texts: templates of the prompts.
      data: where the data comes from.
      prm: the process reward model of the initial data.
      rollouts: step labels from completions.
      mcts: tree search for pairs.
      teacher: who judges the pairs.
      mesh: devices of training.
      train: what both kinds of training share.
      sft: settings of SFT.
      search: settings of search.
      judge: settings of judging.
      srlm: settings of the baseline that rates whole solutions.
      pairs: which pairs are kept.
      dpo: settings of step-DPO.
      eval: settings of evaluation.
    """

    seed: int
    iterations: int
    improve_by: str
    init: str
    shape: lm.ModelConfig
    tokenizer: str
    compile_cache: str
    wandb: str
    texts: Texts
    data: Data
    prm: Prm
    rollouts: Rollouts
    mcts: Mcts
    teacher: Teacher
    mesh: MeshShape
    train: Train
    sft: Sft
    search: Search
    judge: Judge
    srlm: Srlm
    pairs: Pairs
    dpo: Dpo
    eval: Evaluation

    @property
    def sampling_tensor(self) -> int:
        """Chips of one host that heads are split over while sampling and judging."""
        return self.search.tensor or self.mesh.tensor


def from_config(config: ml_collections.ConfigDict) -> Settings:
    """Returns the settings of a config as typed values.

    Raises:
      ValueError: for a value that its own type refuses (`sft.Phase`, `dpo.Options`,
        `ModelConfig`). `run.ranges.check` refuses more, and earlier.
    """
    shape = config.model.to_dict()
    init = shape.pop("init")
    return Settings(
        seed=config.seed,
        iterations=config.iterations,
        improve_by=config.improve_by,
        init=init,
        shape=lm.ModelConfig(**shape, adapters=_adapters(config.lora)),
        tokenizer=config.tokenizer,
        compile_cache=config.compile_cache,
        wandb=config.wandb,
        texts=Texts(**config.prompts),
        data=Data(**{**config.data, "questions": tuple(config.data.questions)}),
        prm=Prm(**{**config.prm, "phase": _phase(config.prm.phase)}),
        rollouts=Rollouts(**config.rollouts),
        mcts=Mcts(**{**config.mcts, "phase": _phase(config.mcts.phase)}),
        teacher=Teacher(**config.teacher),
        mesh=MeshShape(**config.mesh),
        train=Train(**config.train),
        sft=Sft(**{**config.sft, "phases": tuple(map(_phase, config.sft.phases))}),
        search=Search(**config.search),
        judge=Judge(**config.judge),
        srlm=Srlm(**config.srlm),
        pairs=Pairs(**config.pairs),
        dpo=_dpo(config.dpo),
        eval=Evaluation(**{**config.eval, "benchmarks": tuple(config.eval.benchmarks)}),
    )


def _adapters(section: ml_collections.ConfigDict) -> lora.Options | None:
    if not section.rank:
        return None
    return lora.Options(**{**section, "layers": tuple(section.layers)})


def _phase(phase: ml_collections.ConfigDict) -> sft.Phase:
    values = phase.to_dict()
    optimizer = train.OptimizerOptions(**values.pop("optimizer"))
    return sft.Phase(**values, optimizer=optimizer)


def _dpo(section: ml_collections.ConfigDict) -> Dpo:
    values = section.to_dict()
    names = [field.name for field in dataclasses.fields(dpo.Options)]
    loss = dpo.Options(**{name: values.pop(name) for name in names})
    optimizer = train.OptimizerOptions(**values.pop("optimizer"))
    updates = tuple(values.pop("updates"))
    return Dpo(loss, optimizer, updates=updates, **values)


def templates(
    texts: Texts, base: prompts.Templates, *, tie: bool = False
) -> prompts.Templates:
    """Returns the templates of a run, checked.

    Args:
      texts: those of the settings.
      base: those of the run's world, used where `texts` has "".
      tie: whether the judge may say that neither step is better.

    Raises:
      ValueError: for a template without a field that it needs.
    """
    result = prompts.Templates(
        solve=texts.solve or base.solve,
        judge=texts.judge or (prompts.JUDGE_OR_TIE if tie else base.judge),
        step=texts.step,
        verdict=texts.verdict,
        chat=texts.chat,
    )
    prompts.check_templates(result)
    return result


def model_config(
    settings: Settings, vocab_size: int, kept: str | os.PathLike | None = None
) -> lm.ModelConfig:
    """Returns the decoder's configuration.

    Args:
      settings: of the run.
      vocab_size: ids of the tokenizer.
      kept: folder with the config.json that a run keeps of a pretrained M0; None reads
        the config where M0 itself is.

    Raises:
      ValueError: when the tokenizer has more ids than the model's vocabulary, when
        adapters have a larger rank than the model's matrices, or for an unknown `init`.
    """
    shape, init = settings.shape, settings.init
    kind, _, source = init.partition(":")
    if kind in pretrained.KINDS and source:
        if kept is None:
            stored = pretrained.read_config(init)
        else:
            stored = hf_config.config_from_hf(kept)
        names = ("dtype", "remat", "attention", "adapters")
        shape = dataclasses.replace(
            stored, **{name: getattr(shape, name) for name in names}
        )
    elif init == "random":
        multiple_of_8 = -(-vocab_size // 8) * 8
        size = shape.vocab_size or multiple_of_8
        shape = dataclasses.replace(shape, vocab_size=size)
    else:
        raise ValueError(
            f"model.init={init!r}; expected 'random', 'hf:DIR' or 'gguf:FILE'."
        )
    lora.check_rank(shape)
    if vocab_size > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {vocab_size} ids and the model's vocabulary "
            f"{shape.vocab_size}; expected at most as many. Use the model's own "
            "tokenizer, or raise model.vocab_size."
        )
    return shape


def dpo_batches(
    settings: Settings,
    pairs: Sequence[forest.IdPair],
    mesh: Mesh,
    *,
    seed: int,
    epochs: int = 1,
    updates: int = 0,
    batch_size: int | None = None,
) -> dpo.Batches:
    """Returns `dpo.make_batches` with the layout of the settings.

    Args:
      settings: of the run.
      pairs: the preferences; those of one solution are neighbours.
      mesh: devices of training.
      seed: of the shuffling.
      epochs: passes over the pairs.
      updates: if not 0, the number of updates, which then decides instead of `epochs`.
      batch_size: pairs per update; None takes `dpo.batch_size`.
    """
    return dpo.make_batches(
        pairs,
        mesh=mesh,
        batch_size=batch_size or settings.dpo.batch_size,
        micro_batches=settings.train.micro_batches,
        row_length=settings.train.row_length,
        epochs=epochs,
        updates=updates,
        seed=seed,
    )
