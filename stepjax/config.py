"""Every setting of a run, once, with its unit and where it comes from.

Files in ``configs/`` call `default` and set only what differs. Unknown names and
wrong types are errors. "paper" is arXiv 2503.03746.
"""

import stepjax.lm  # noqa: F401, says what to install when something is missing

# isort: split
import ml_collections


def default() -> ml_collections.ConfigDict:
    """Returns the settings of the paper where it states them, locked.

    A run needs, on top: ``model`` (shape or ``init``), and ``data``.
    """
    c = ml_collections.ConfigDict()
    c.seed = 0  # every draw of a run is folded from it
    c.iterations = 3  # step-DPO rounds: M1 → M(1 + iterations); paper: 3
    c.improve_by = "dpo"  # Mi → M(i+1): "dpo" (paper), or "sft": more SFT (a control)

    c.model = model = ml_collections.ConfigDict()
    # "random", "hf:DIR" for a Hugging Face directory, or "gguf:FILE" for a GGUF file.
    model.init = "random"
    # Compute type; "bfloat16" on accelerators, and on CPUs that multiply it themselves.
    model.dtype = "float32"
    # What the backward pass computes again: "none", "full", "attention" (everything but
    # the output of attention), "dots" (everything but matrix products).
    model.remat = "none"
    # How forest rows attend: "chunks", "kernel" (TPU), "cudnn" (GPU); "auto" takes the
    # kernel on TPU and chunks elsewhere. Decoding steps have a kernel too, which "auto"
    # takes on v5p, and "kernel" everywhere.
    model.attention = "auto"
    # Shape of a random model; an hf: directory and a gguf: file bring their own.
    model.vocab_size = 0  # 0: the tokenizer's, rounded up to a multiple of 8
    model.hidden_size = 64  # width of the states between layers
    model.num_layers = 2  # decoder layers
    model.num_heads = 2  # query heads of a layer
    model.num_kv_heads = 2  # key and value heads of a layer
    model.head_dim = 32  # width of one head
    model.intermediate_size = 192  # width inside the feed-forward part of a layer
    model.rope_theta = 10000.0  # base of the rotary position encoding
    model.rms_norm_eps = 1e-6  # added to the mean square of a norm
    model.qkv_bias = True  # True: Qwen2, False: Llama
    model.tie_embeddings = False  # True: the unembedding is the embedding
    model.embedding_std = 0.02  # of a random embedding
    model.init_std = 0.02  # of every other random matrix

    # Folder or tokenizer.json; "" takes that of model.init or of the world.
    c.tokenizer = ""

    # Folder that keeps compiled programs for later commands: "auto" is stepjax in the
    # user's cache folder ($XDG_CACHE_HOME or ~/.cache), "" keeps none.
    c.compile_cache = "auto"
    # Project of Weights & Biases that gets the numbers of TensorBoard too; "" for none.
    c.wandb = ""

    c.prompts = text = ml_collections.ConfigDict()
    text.solve = ""  # template with {problem}; "" takes the world's or stepjax.prompts
    text.judge = ""  # template with {problem}, {steps}, {a}, {b}
    # Template with {problem}, {steps}, {step}; read with judge.score = "pointwise".
    text.single = ""
    text.step = "Step {n}: "  # marker of a step (paper, appendix)
    text.verdict = "[[{side}]]"  # how a judgment ends (paper, appendix)
    # "template" puts the tokenizer's own chat template around all prompts, and the
    # model's own end of turn ends every response; "none" does neither.
    text.chat = "none"

    c.data = data = ml_collections.ConfigDict()
    # "arithmetic", "backwards": made on the spot; "word_problems": made of
    # `data.equations` and `data.test`; "": the files below.
    data.world = ""
    # New questions per iteration (paper); the last number also counts for further
    # iterations. () deals out all of `data.question_file`.
    data.questions = (400, 800, 1200)
    data.operations = 3  # arithmetic, backwards: steps of a problem
    data.guessed_share = 0.0  # arithmetic: share of the steps that IFT solutions guess
    data.unseen_blocks = 0  # arithmetic: blocks (of 24) that only "unseen" tests hold
    data.taught_results = 6  # backwards: of each block (of 10), in training rows
    data.unseen_results = 1  # backwards: of each block, only in "unseen" tests
    data.ift_count = 0  # IFT rows, 0 all; arithmetic: how many to make
    data.eft_count = 0  # EFT problems (two rows each), 0 all; in a world: to make
    data.heldout_count = 0  # EFT problems kept to measure the judge (paper: 500 rows)
    data.test_count = 0  # test problems, 0 all
    data.equations = ""  # word_problems: file of {"problem", "answer", "equation"}
    data.explanations = "short"  # word_problems: of EFT rows: "short", "worked", "none"
    data.ift_variants = 0  # word_problems: more solutions per problem, other numbers
    data.drills = 0  # word_problems: more solutions, of plain calculations
    # In a world, with `data.make_eft`: comparisons (two rows each) with corrupted steps
    # that are added to what the teacher's filter keeps.
    data.corrupted_count = 0
    # File of IFT rows. Here and below, "tfds:NAME/SPLIT" instead of a file takes rows
    # of tensorflow-datasets; "tfds:NAME/SPLIT?problem=question&data_dir=DIR" says which
    # field is which.
    data.ift = ""
    # "jsonl" (records.Solution), "gsm8k", "word_problems" (solved by their equations),
    # "math" or "numina" (cut into steps by rules)
    data.ift_format = "jsonl"
    data.eft = ""  # file of EFT rows
    # "jsonl" (records.Comparison), "prm800k", or pairs of steps without explanations:
    # "trl" (prompt, chosen, rejected), "step_dpo", "values"
    data.eft_format = "jsonl"
    data.question_file = ""  # questions; those in IFT, EFT or test are passed over
    # "jsonl" (records.Question), "benchmark" ({"problem", ...}), "gsm8k", "math",
    # "numina", "word_problems", "prm800k", "processbench"
    data.question_format = "jsonl"
    # True: the run makes its EFT rows itself, as in section 3.1 of the paper: a PRM and
    # tree search find pairs, a teacher judges them; see `prm`, `mcts`, `teacher`. Then
    # `data.eft` is not read, and `data.heldout_count` counts problems of the made rows.
    data.make_eft = False
    data.test = ""  # file of test problems
    # "jsonl" (records.Problem), "benchmark" ({"problem", "answer", ...}), "gsm8k",
    # "math", "numina", "word_problems", "prm800k"
    data.test_format = "jsonl"
    # True: in "jsonl" files, a field that is not read is an error, and so are other
    # names of fields, numbers instead of texts, and steps without a marker.
    data.strict = False

    # The initial data; read with `data.make_eft`, and by `stepjax init-data`.
    c.prm = prm = ml_collections.ConfigDict()  # the process reward model
    # File of step labels; "rollouts": labelled by `rollouts`; "gold": there is no PRM,
    # and the world says which steps are right (probability 1 or 0).
    prm.labels = ""
    # "jsonl" (records.StepLabels), "prm800k", "math_shepherd", "processbench" or
    # "stepwise" (TRL)
    prm.labels_format = "jsonl"
    prm.labels_count = 0  # rows, 0 all; arithmetic: problems to make
    prm.heldout_count = 0  # problems whose labels are kept to measure the PRM
    prm.prompt = ""  # template with {problem}; "" takes prompts.solve
    # Weight of each token of a right step, so that the PRM learns to write such steps,
    # too (arXiv 2110.14168); the labels have weight 1. Paper: the labels alone.
    prm.language_weight = 0.0
    prm.from_policy = False  # True: the PRM starts from the policy of `mcts`, not M0
    prm.phase = phase(  # of its SFT (paper: 1 epoch, 1e-5, 128)
        "prm", ift=0.0, epochs=1, batch_size=128, optimizer=optimizer(1e-5)
    )

    c.rollouts = rollouts = ml_collections.ConfigDict()  # with prm.labels = "rollouts"
    rollouts.problems = 0  # IFT problems whose answers are used, 0 all
    rollouts.solutions = 2  # solutions of the policy per problem, which get the labels
    rollouts.samples = 8  # completions per step, k
    rollouts.temperature = 0.7  # of the completions
    rollouts.top_p = 0.95  # share of the probability that samples are drawn from
    rollouts.max_tokens = 1024  # tokens of a completion
    rollouts.hard = False  # True: labels 0 and 1, as in arXiv 2312.08935

    c.mcts = mcts = ml_collections.ConfigDict()  # Monte Carlo tree search
    mcts.phase = phase("policy", eft=0.0)  # of the policy's SFT on IFT alone
    mcts.questions = 400  # problems searched
    mcts.question_file = ""  # those in another file are passed over
    mcts.question_format = "jsonl"  # see data.question_format
    mcts.width = 6  # samples per expansion
    mcts.temperature = 0.7  # of the samples (paper)
    mcts.top_p = 0.95  # of the samples (paper)
    mcts.iterations = 100  # per problem (paper)
    mcts.depth = 3  # steps that a simulation goes on after the new step (paper)
    mcts.max_steps = 20  # steps of a solution
    mcts.rule = "uct"  # how a child is selected: "uct" or "puct"
    mcts.exploration = 1.0  # constant of the rule
    mcts.min_margin = 0.0  # least difference of a pair's two PRM probabilities
    mcts.pairs_per_layer = 1  # pairs from the most visited nodes of each layer
    mcts.pairs_per_node = 1  # most pairs of one node (paper: best and worst)
    # Share of the pairs that hold two steps with the same probability, the lowest of
    # their node. The teacher may say that neither is better, see
    # `teacher.undecided_margin`. Paper: none.
    mcts.undecided_share = 0.0
    mcts.remember_tokens = 4096  # keys and values kept per problem in flight

    c.teacher = teacher = ml_collections.ConfigDict()  # judges pairs, cuts solutions
    # "http" (an OpenAI-compatible server), "local" (a model of the run: M0, or that of
    # `teacher.model`), "replay" (a file of answers), "world" (that of `data.world`).
    teacher.backend = "http"
    teacher.url = ""  # "http", e.g. "http://localhost:8000/v1"
    # Of "http": its name. Of "local": "" for M0, or "hf:DIR" or "gguf:FILE".
    teacher.model = ""
    teacher.key_variable = "OPENAI_API_KEY"  # environment variable with the key
    teacher.file = ""  # "replay": file of answers, in the form of the cache
    teacher.temperature = 0.0  # of an answer
    teacher.max_tokens = 1024  # tokens of an answer
    teacher.concurrency = 8  # requests at the same time
    teacher.requests_per_minute = 0  # 0: no limit
    teacher.token_budget = 0  # most tokens of all requests and answers; 0: no limit
    teacher.timeout = 120.0  # seconds for one request
    teacher.retries = 5  # after a failed request
    # Pairs on which the teacher contradicts itself, and whose PRM probabilities differ
    # by less than this, are kept with its own verdicts; see `eft.keep`. Paper: none.
    teacher.undecided_margin = 0.0

    c.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # replicas; -1: what the other axes leave
    mesh.fsdp = 1  # ways that parameters and optimizer state are split; or -1, as above
    mesh.tensor = 1  # ways that heads, feed-forward and vocabulary are split

    c.train = train = ml_collections.ConfigDict()
    train.row_length = 1024  # tokens of a forest row; longer examples are dropped
    train.micro_batches = 1  # parts of a batch whose gradients are summed
    train.checkpoint_every = 200  # updates between two saved training states; 0: none
    train.log_every = 20  # updates per line of metrics
    # An update whose loss or gradient is not finite: "stop" ends the command and names
    # the rows of its batch; "skip" leaves the model as it was, and says so.
    train.on_nonfinite = "stop"
    # Type of AdamW's first moment: "float32", or "bfloat16", which takes 2 bytes per
    # parameter less and gives other numbers. The second moment is always float32.
    train.optimizer_dtype = "float32"

    # Adapters (LoRA): SFT and step-DPO train them beside the matrices of M0, which stay
    # as they are. A matrix W becomes W + alpha / rank * A B, and B begins at zero
    c.lora = lora = ml_collections.ConfigDict()
    lora.rank = 0  # columns of A, rows of B; 0: no adapters, all parameters are trained
    lora.alpha = 16.0  # divided by the rank, it is the weight of the product A B
    # The adapted matrices of every decoder layer: of attention, then of feed-forward
    lora.layers = ("query", "key", "value", "out", "gate", "up", "down")

    c.sft = sft = ml_collections.ConfigDict()
    sft.phases = (phase(),)  # paper: one phase, IFT and EFT mixed
    sft.verdict_weight = 1.0  # loss weight of the verdict's tokens
    # Words of an explanation that weigh as much as the verdict, such as ("right",
    # "wrong") where it says of each candidate which of the two it is.
    sft.verdict_words = ()
    # True: the judgments of a problem are trained together, as branches of one tree
    # that computes the problem once; a batch then counts them as one sequence.
    sft.share_problems = False
    # True, with data.make_eft: SFT goes on from the policy of `mcts`, which has learned
    # the IFT rows already; M1 does not learn them a second time from the beginning.
    sft.from_policy = False

    c.search = search = ml_collections.ConfigDict()
    # Who writes the candidates: "self" (paper), or "module:function", a function of
    # your own; see docs/data.md.
    search.propose_by = "self"
    search.width = 6  # candidates per step, w (paper)
    search.temperature = 0.5  # of the candidates (paper)
    search.top_p = 0.95  # of the candidates (paper)
    # Samples that repeat another one are drawn again, with another token where the
    # model left at least this probability to others; 0 keeps them (paper).
    search.redraw = 0.0
    search.max_expansions = 20  # per problem, with going back (paper: 20 iterations)
    search.on_tie = "back"  # "back" (paper), or "append" the most frequent, no pair
    # With judge.score = "pointwise", a best step that the judge calls wrong: "append"
    # it all the same, or "resample": sample this step again.
    search.on_reject = "append"
    search.max_step_tokens = 256  # tokens of a step
    search.context_tokens = 2048  # tokens of prompt and steps
    search.slots = 32  # problems in flight, over all hosts
    # Chips of one host that heads are split over while sampling and judging; 0 takes
    # mesh.tensor. Each group of this many chips holds all weights.
    search.tensor = 0
    # Weights while a run samples and judges: "full", in model.dtype; or "int8", the
    # matrices of the layers in 8 bits, which take half of the memory of bfloat16.
    # Training and the reference's log-probabilities always use "full".
    search.weights = "full"

    c.judge = judge = ml_collections.ConfigDict()
    # "comparisons" of next steps in pairs (paper); or "ratings" of whole solutions, the
    # baseline SRLM of arXiv 2401.10020 with the settings of `srlm`.
    judge.kind = "comparisons"
    judge.mode = "generate"  # (paper), or "logprob"
    # Who judges: "self" (paper); "module:function", a function of your own that scores
    # the candidates, see docs/data.md; "prm", the PRM that a run with data.make_eft
    # trains; "http", the server of `teacher`, which sees the prompts that the model
    # would; controls: "random" coins, "oracle" (the gold).
    judge.by = "self"
    # Weight of EFT rows that every update of step-DPO also learns from, as many as it
    # has pairs, so that the model keeps judging while it learns to solve (paper: none).
    judge.keep = 0.0
    # Step-DPO also trains the judge, on pairs of its own explanations: "none" (paper);
    # "consistency": one that names the winner on which the majorities of both orders
    # agree, over one that names the other step; "outcome": the winner is the one that
    # is right by the gold of a world. They need judge.votes of 3 ("consistency") or 2
    # ("outcome") or more. See `stepjax.judgment_pairs`.
    judge.learn = "none"
    # Which model judges with judge.by = "self": "", the one that searches (paper), or
    # "M1", which stays as it is while the solver moves.
    judge.model = ""
    # Reading of equation 2: "sum", "consistent" or "single"; or "pointwise": each step
    # is judged alone, w calls instead of w (w - 1) (an ablation, `stepjax.pointwise`).
    judge.score = "sum"
    # What a verdict counts: "hard", its side (paper), or "probability", how likely the
    # judge holds that side; Score_i is then a win rate weighted by margins, 0 to 1, and
    # pairs.min_margin a difference of win rates. See `stepjax.judge.win_rates`.
    judge.value = "hard"
    # Explanations per ordered pair; the majority counts, or their mean probability.
    # More than 1 need judge.temperature above 0.
    judge.votes = 1
    # True: the verdict [[C]], neither is better, counts half for both. EFT rows may
    # have it, and the prompt of stepjax.prompts names it. Not in a data.world.
    judge.tie = False
    # Which pairs are judged: "full" asks all (paper), "knockout" and "swiss" play a
    # tournament of fewer calls.
    judge.schedule = "full"
    judge.temperature = 0.0  # of the explanation
    judge.top_p = 1.0  # of the explanation
    judge.max_tokens = 512  # of explanation and verdict
    judge.context_tokens = 2560  # tokens of instructions, question and steps
    # Most calls of one problem that are decoded together, so that its context is read
    # once for all of them. From search.width - 1 up, calls with the same first
    # candidate also share the reading of that candidate.
    judge.rows = 30

    c.srlm = srlm = ml_collections.ConfigDict()  # read with judge.kind = "ratings" only
    srlm.max_tokens = 512  # of explanation and rating
    srlm.rate = ""  # template with {problem}, {solution}; "" takes the world's
    srlm.rating = ""  # ends with {score}; "" takes the world's or "Score: {score}"

    c.pairs = pairs = ml_collections.ConfigDict()
    pairs.best_beats_all = False  # keep a pair only if the best won all its calls
    # Least difference between the scores of best and worst. Where scores are from 0 to
    # 1 it is less than 1, and 0 keeps all: win rates (judge.value="probability") and
    # shares of votes (judge.score="pointwise" with judge.votes above 1).
    pairs.min_margin = 1.0

    c.dpo = dpo = ml_collections.ConfigDict()
    dpo.beta = 0.1  # pull towards the reference; the paper does not state it
    dpo.label_smoothing = 0.0  # probability that a preference is the wrong way round
    dpo.nll_weight = 0.0  # of the chosen step's mean token loss (paper: none)
    # "precomputed": the reference's log-probabilities, computed once before training;
    # "live": the reference is kept beside the policy.
    dpo.reference = "precomputed"
    dpo.batch_size = 32  # pairs per update (paper)
    dpo.epochs = 1  # passes over the pairs (paper)
    dpo.updates = ()  # updates of each iteration; () lets `epochs` decide
    dpo.optimizer = optimizer(learning_rate=5e-7)  # AdamW (paper: the learning rate)

    c.eval = ml_collections.ConfigDict()
    c.eval.max_tokens = 2048  # of a greedy solution
    c.eval.search_count = 0  # test problems for the search evaluation; 0 all
    # "lenient": an answer that means the same as the gold one is right; "strict": only
    # the same text or number in a closed \boxed{}; see docs/evaluation.md.
    c.eval.grading = "lenient"
    # Further problems that `stepjax run` measures every model on, M0 too, with greedy
    # decoding: files or folders of such files, as --benchmark takes them, or rows of
    # tensorflow-datasets, as ("gsm8k.jsonl", "tfds:my_set/test"); see
    # docs/evaluation.md.
    c.eval.benchmarks = ()
    c.lock()
    return c


def optimizer(
    learning_rate: float,
    schedule: str = "constant",
    *,
    warmup_steps: int = 0,
    final_fraction: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> ml_collections.ConfigDict:
    """Returns AdamW's settings, locked; see `stepjax.lm.train.OptimizerOptions`."""
    return ml_collections.ConfigDict(locals()).lock()


def phase(
    name: str = "mixed",
    *,
    ift: float = 1.0,
    eft: float = 1.0,
    epochs: int = 3,
    steps: int = 0,
    stop_loss: float = 0.0,
    batch_size: int = 32,
    optimizer: ml_collections.ConfigDict = optimizer(learning_rate=1e-6),  # noqa: B008
) -> ml_collections.ConfigDict:
    """Returns a phase of SFT, locked; see `stepjax.sft.Phase`. Defaults: the paper's.

    The optimizer's settings are copied, so that no two phases share them.
    """
    values = locals() | {"optimizer": ml_collections.ConfigDict(optimizer.to_dict())}
    return ml_collections.ConfigDict(values).lock()


def to_dict(value):
    """Returns settings as plain JSON values."""
    if isinstance(value, ml_collections.ConfigDict):
        return {name: to_dict(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return value


def from_dict(values: dict) -> ml_collections.ConfigDict:
    """Returns the settings of a config.json."""
    config = default()
    phases = values["sft"].pop("phases")
    values["data"]["questions"] = tuple(values["data"]["questions"])
    values["dpo"]["updates"] = tuple(values["dpo"]["updates"])
    config.update(values)
    config.sft.phases = tuple(
        phase(**p | {"optimizer": optimizer(**p["optimizer"])}) for p in phases
    )
    return config
