"""The parts of the command line that `stepjax.main` puts together."""
