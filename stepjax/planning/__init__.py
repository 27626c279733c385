"""What a run needs of a TPU slice, compiled without one."""
