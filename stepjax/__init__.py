"""stepjax: process-based self-rewarding language models in JAX (arXiv 2503.03746).

    base M0 --SFT--> M1 --search and judge--> pairs --step-wise DPO--> M2 --> ... --> Mn

One file per stage of the method, in the order in which it runs, then the plumbing:

    losses.py      step_logps, step_dpo_loss, ...: imports jax and nothing else
                   variants: preference_losses.py, reference_free_losses.py
    forest.py      packs sequences and whole search trajectories into rows
    prompts.py     templates, step format, verdicts, boxed answers
    records.py     rows of IFT, EFT and benchmark data; JSONL in and out
    encode.py      records to token ids and masks
    sources.py     public data sets to records
    prepare.py     a run's data and tokenizer, and every check that can be made early
    sft.py         M0 to M1
    propose.py     the model writes candidate steps
    judge.py       the model compares them in pairs
    search.py      step-by-step search: propose, judge, keep the best, go back
    pairs.py       trajectories to preference data
    dpo.py         Mi to Mi+1
    iterate.py     the loop from M0 to Mn over a run directory
    engine.py      what its stages share; rundir.py: finished stages, manifests
    ablate.py      the loop against its controls: coins, gold, more SFT, SRLM
    measure.py     the evaluation stages of a run
    evaluate.py    accuracy on benchmarks, accuracy of the judge
    diagnose.py    why a loop gains or fails: pairs, judgments, drift, warnings
    answers.py     answers: extraction and equivalence
    monitor.py     progress bars, metrics on disk
    summary.py     the final tables
    worlds/        built-in worlds to run the whole method in: arithmetic
    plan.py        what a run needs of a TPU slice, without one
    programs.py    the programs of a run, traced for devices that need not exist
    config.py      default(): every knob once
    main.py        the command line
    lm/            model.py       one decoder for all model families
                   attention.py   attention over forests and shared caches
                   forest_kernel.py  the same for TPU, skipping what nobody sees
                   vocabulary.py  the two ends of the decoder on a mesh
                   generate.py    sampling of steps on the device
                   sampler.py     sampling behind contexts, seen from the host
                   stops.py       stop strings as an automaton over token ids
                   tokenizer.py   text to ids and back
                   weights.py     Hugging Face directories in; hf_config.py,
                                  tensor_files.py; export.py writes them
                   sharding.py    meshes, logical axes
                   hosts.py       several hosts: waiting, agreeing, sharing work
                   aot.py         compiling for TPU slices without one; flops.py
                   train.py       train state and training step
                   checkpoint.py  arrays with checksums

`import stepjax` loads nothing, `from stepjax import step_dpo_loss` loads jax only.
Everything but the losses needs the extra `train`: pip install "stepjax[train]".
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
