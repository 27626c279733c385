"""What finished stages came to, in words, for a run that finds them done."""

from collections.abc import Mapping
from typing import Any


def of_training(manifest: Mapping[str, Any]) -> str:
    """Returns what the manifest of SFT or DPO says, e.g. "done before: 8 updates"."""
    counts = manifest["counts"]
    updates = counts["updates"]
    if isinstance(updates, Mapping):  # of the phases of SFT
        updates = sum(updates.values())
    parts = [f"{updates} updates"]
    parts += [f"{counts[k]} {k}" for k in ("pairs", "ift", "eft") if k in counts]
    return _done(parts, manifest["seconds"])


def of_search(manifest: Mapping[str, Any]) -> str:
    """Returns what the manifest of a search says."""
    counts = manifest["counts"]
    parts = [
        f"{counts['pairs']} pairs from {counts['questions']} questions",
        f"{counts['complete']} complete",
    ]
    return _done(parts, manifest["seconds"])


def of_evaluations(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what the manifests of evaluations say.

    Args:
      manifests: mode → manifest.
    """
    parts, seconds = [], 0.0
    for mode, manifest in manifests.items():
        metrics = manifest["metrics"]
        seconds += manifest["seconds"]
        if "accuracy" in metrics:
            parts.append(f"{mode} {100 * metrics['accuracy']:.1f} %")
        elif "kl" in metrics:
            parts.append(f"{mode} KL {metrics['kl']:.3f} per token")
        else:
            parts.append(mode)
    return _done(parts, seconds)


def _done(parts: list[str], seconds: float) -> str:
    return f"done before in {seconds:.0f} s: {', '.join(parts)}"
