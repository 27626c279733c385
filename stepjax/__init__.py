"""stepjax: process-based self-rewarding language models in JAX (arXiv 2503.03746).

    base M0 --SFT--> M1 --search and judge--> pairs --step-wise DPO--> M2 --> ... --> Mn

The method, one file per stage, in the order in which it runs:

    prompts.py      the texts: templates, step format, verdicts, boxed answers
    verdicts.py     which verdict a judgment gives: a grammar
    records.py      the rows of IFT, EFT and benchmark data, as files of JSON lines
    codec.py        texts to token ids and back
    sft.py          M0 to M1
    row_trees.py    its many rows, each read from its file when it is laid out
    propose.py      the model writes candidate steps
    redraw.py       samples that repeat another one, drawn again: without replacement
    judge.py        what the judge is asked, and how verdicts become scores
    self_judge.py   the model compares the candidates in pairs
    tournament.py   which pairs are compared, when not all are; several votes
    pointwise.py    an ablation: each step is judged alone
    trajectory.py   candidates, expansions and states of a search
    search.py       step-by-step search: propose, judge, keep the best, go back
    pairs.py        finished searches to preference pairs
    judgment_pairs.py  finished searches to preferences between judgments
    forest.py       sequences of any kind as trees, and trees packed into rows
    prefix_tree.py  one tree that holds what sequences begin with once
    pair_trees.py   the pairs of a search as a tree: a trunk with branches
    preferences.py  many pairs, each read from its file when it is laid out
    dpo.py          Mi to Mi+1
    losses.py       step_logps, step_dpo_loss, ...: imports jax and nothing else
                    variants: preference_losses.py, reference_free_losses.py
    iterate.py      the loop from M0 to Mn
    ablate.py       the loop against its controls: coins, gold, more SFT, SRLM
    controls.py     judges of the controls: coins, gold
    own_functions.py  a judge, a PRM or a proposer of your own, as a function
    own_import.py   finds such a function and checks it
    own_files.py    what is wrong in a config file or an own function, in a sentence
    srlm.py         SRLM, the baseline that rates whole solutions (arXiv 2401.10020)

    interrupts.py   signals: the work stops after the unit that it is at
    os_errors.py    a full disk and the like: which file, why, what to do
    main.py         the command line; __main__.py: the same by python -m stepjax.
                    cli/: help.py: commands and options in words; options.py: as
                    flags; arguments.py: their checks; config_files.py: where
                    settings come from;
                    load_config.py: reads and checks such a file; explain.py: errors
                    of settings that the command line changes; config_table.py:
                    stepjax config; outcome.py: exit status and last sentence;
                    stderr.py: what is printed may lose its reader
    config.py       default(): every setting once
    settings.py     settings to typed options

Beside the method; of the files above only main, iterate and ablate import these:

    initial_data/   where IFT and EFT rows come from. command.py: stepjax init-data;
                    cutter.py, ift.py: solutions to steps; decontaminate.py: overlap
                    with evaluations; prm.py: the process reward model; rollouts.py,
                    step_values.py: step labels from completions; step_tree.py,
                    mcts.py: tree search for pairs; teacher.py: who judges them: a
                    server (teacher_http.py), a model of ours (teacher_local.py) or a
                    file; teacher_answers.py: keeps answers; eft.py: which judgments
                    are kept; stages.py, eft_stage.py: all this as stages of a run
      formats/      public formats to records and back. sources.py: all of them by name;
                    own.py: our own; published.py: fields of benchmarks; files.py,
                    csv_files.py, json_text.py, fields.py: rows of files, bad rows;
                    meaning.py: rows that mean nothing;
                    worked.py, word_problems.py, prm800k.py, step_labels.py,
                    preferences.py, run_pairs.py: one or two formats each; tfds.py,
                    tfds_files.py, tfds_builder.py: tensorflow-datasets
    worlds/         built-in worlds, whose gold is known: arithmetic.py,
                    arithmetic_data.py, arithmetic_srlm.py, arithmetic_teacher.py: made
                    up; backwards.py, backwards_data.py, backwards_srlm.py: made up,
                    and all of it right; tokens.py: tokenizers; word_problems.py,
                    equations.py, word_problems_judgments.py, word_problems_data.py,
                    word_problems_numbers.py, word_problems_srlm.py: problems with an
                    equation
    run/            run.py: a run, what its stages share; rundir.py: its directory;
                    stage.py, manifest.py: finished stages and what they made;
                    standing.py: which were made from what is there; config_json.py,
                    mend_data.py: settings and data that were lost come back; lock.py:
                    one command at a time; compiles.py: programs that XLA compiles, and
                    their cache; journal.py: unfinished work; redo.py: what
                    changed settings invalidate; ranges.py, rules.py, judge_rules.py:
                    what each setting may be, and several together; paths.py,
                    missing_files.py, checks.py: early errors; prepare.py, data.py,
                    world_rows.py,
                    more_questions.py: its data; base.py: M0, and the base of adapters;
                    models.py: finished models;
                    kind.py: the paper's judging or SRLM's, chosen in one place;
                    rollout.py: searches of a run; judges.py: who judges in them;
                    judge_training.py: what trains the judge beside the pairs;
                    finetune.py: a phase of SFT;
                    reference_pass.py: log-probabilities before step-DPO; banner.py:
                    what a run says first; monitor.py, progress.py: progress, metrics;
                    wandb_curves.py: the same elsewhere; profile.py: traces of a run;
                    text_table.py: tables that fit the terminal; check_device.py:
                    stepjax check
    evaluation/     stages.py: what is measured; grading.py: accuracy of a model and
                    of its judge; judge_stage.py: the stage that measures the judge;
                    judge_sets.py: public files of judged steps; intervals.py: how
                    sure that is; benchmark_paths.py, benchmarks.py,
                    benchmark_tables.py: benchmarks, found, read, in the loop;
                    answers.py: extraction, equivalence; limits.py: where the
                    grader stopped; second_opinion.py: another grader;
                    typesetting.py, formulas.py: how answers are written; values.py,
                    real_sets.py: what they are; diagnose.py: why a round gains or
                    fails; calibration.py: what its verdicts say about a judge;
                    causes.py: why a search makes few pairs; samples.py, tables.py:
                    samples and tables; show.py, show_data.py: stepjax show;
                    dry_run.py: stepjax run --dry-run; solve.py: stepjax solve;
                    methods.py: the test-time methods that it compares; solver.py:
                    what they need of a model; budgets.py: accuracy against tokens
    report/         stepjax report. build.py: the page, from page.html, page.css and
                    page.js; charts.py: its charts and tables; plots.py: how they are
                    drawn; searches.py: searches, packed; published.py: the paper's
                    figures; paper_tables.py: its tables; solved.py: test-time
                    methods; data_map.py, embeddings.py: a map of the data
    planning/       plan.py: the memory and time that a run needs on a TPU slice,
                    computed without a TPU; programs.py, slices.py, flops.py: its
                    programs, how they are compiled, and how FLOPs are counted;
                    card.py: the memory on one GPU; live.py: what a program needs at
                    its fullest moment

The language model; it imports nothing of the above but forest and losses:

    lm/             model.py       one decoder for all model families;
                                   model_config.py: its values; families.py: those
                                   of each family
                    attention.py   attention over forests and shared caches
                    forest_kernel.py  the same as a TPU kernel, which skips what no
                                   token sees
                    embedding.py   token look-up and scoring on a mesh
                    products.py    bfloat16 products that are fast on a CPU
                    lora.py        adapters beside matrices that are not trained
                    int8.py        matrices of 8 bits, for sampling and judging
                    pieces.py      weights come to the devices piece by piece
                    decode.py      the decoder behind cached contexts
                    decode_kernel.py  its attention as a kernel for TPU v5p
                    generate.py    sample, score: behind shared contexts, on the device
                    sampler.py     Sampler: the same for lists of token ids; start here
                    layout.py      ragged prompts as arrays of few shapes
                    memory.py      contexts held earlier: kept, and copied back
                    draws.py       random keys, one token from the nucleus
                    stops.py       stop strings as an automaton over token ids
                    tokenizer.py   text to ids and back; encoder.py: names of special
                                   tokens in data stay text; chat.py: chat templates;
                                   unknown.py: characters that are lost;
                                   special_tokens.py: those that are not there
                    parameter_tensors.py  each parameter's place and name in files
                    weights.py     Hugging Face directories in; hf_config.py,
                                   tensor_files.py, json_files.py; export.py writes
                                   them
                    generation_config.py  what ends a text, and how it is sampled
                    pretrained.py  models by name: hf:DIR or gguf:FILE
                    gguf_files.py  GGUF files in; gguf_header.py: their headers are not
                                   believed; gguf_tensors.py, gguf_tokenizer.py
                    limits.py      the largest numbers that are believed in such files
                    ordinary.py    pipes and devices are not opened
                    addresses.py   which paths are addresses, such as gs://...
                    sharding.py    meshes, logical axes
                    hosts.py       several hosts: waiting, agreeing, sharing work
                    roll_call.py   names the hosts that do not come
                    alive.py       names a host that is lost; stops all together
                    train.py       train state and training step
                    checkpoint.py  arrays with checksums
                    files.py       files that are replaced whole, or not at all

`import stepjax` loads no other module; `from stepjax import step_dpo_loss` loads jax.
Everything but the losses needs the extra `train`: pip install -e ".[train]".
"""

__version__ = "0.1.0"

# The public names of each file that needs jax only.
_PUBLIC = {
    "losses": (
        "sft_loss",
        "step_dpo",
        "step_dpo_loss",
        "step_dpo_metrics",
        "step_logps",
        "step_logps_from_hidden",
        "token_logps_from_hidden",
    ),
    "preference_losses": (
        "conservative_dpo_loss",
        "dpo_nll_loss",
        "hinge_dpo_loss",
        "ipo_averaged_loss",
        "ipo_summed_loss",
        "length_desensitised_logps",
        "robust_dpo_loss",
        "step_lengths",
    ),
    "reference_free_losses": ("orpo_loss", "simpo_loss"),
}
__all__ = sorted(name for names in _PUBLIC.values() for name in names)


def __getattr__(name):
    """Loads a file when one of its public names is first asked for (PEP 562)."""
    for module, names in _PUBLIC.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(f"stepjax.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    """Lists the public names before they are loaded, too."""
    return sorted({*globals(), *__all__})
