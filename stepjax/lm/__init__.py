"""Language-model plumbing: tokenizers, stop tables, models and their training."""
