"""The memory and time that a run needs on a TPU slice, computed without a TPU."""
