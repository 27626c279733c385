"""Settings and fixtures of the whole suite; pytest reads this before any test runs.

The losses are also tested where only jax, numpy and pytest are installed: everything
else is imported inside the fixtures.
"""

import contextlib
import os
import shutil
import tempfile

import pytest
import xla_flags

# Tests run on the CPU, seen as eight devices, and never ask a hub for a file.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", ""), xla_flags.devices(8)
os.environ["XLA_FLAGS"] = " ".join(flags).strip()
os.environ["HF_HUB_OFFLINE"] = "1"
# Nothing is kept in the home folder: runs leave a cache alone that JAX is given.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
os.environ["COLUMNS"] = "200"  # tables do not depend on the terminal


def pytest_configure(config):
    """Makes the folder that all workers share; they inherit the environment."""
    if not hasattr(config, "workerinput"):
        os.environ["STEPJAX_TESTS"] = tempfile.mkdtemp(prefix="stepjax-tests-")
    with contextlib.suppress(ImportError):
        import hypothesis

        # No test fails because the machine is busy.
        hypothesis.settings.register_profile("stepjax", deadline=None)
        hypothesis.settings.load_profile("stepjax")


def pytest_unconfigure(config):
    """Deletes it when the last worker has ended."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["STEPJAX_TESTS"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Puts whole runs first: they take longest, and no worker waits for another's."""
    items.sort(key=lambda item: "quick_runs" not in item.fixturenames)


@pytest.fixture(scope="session")
def tokenizer_folder():
    """Folder of the world's tokenizer, trained once for all workers; read only."""
    import runs

    from stepjax.worlds import arithmetic

    return runs.made_once("tokenizer", arithmetic.train_tokenizer)


@pytest.fixture(scope="session")
def codec(tokenizer_folder):
    """The world's templates over its tokenizer."""
    from stepjax.codec import Codec
    from stepjax.lm import tokenizer
    from stepjax.worlds import arithmetic

    return Codec(tokenizer.load(tokenizer_folder), arithmetic.templates())


@pytest.fixture(scope="session")
def one_device():
    """A mesh of the first of the eight devices."""
    import runs

    return runs.one_device_mesh()


@pytest.fixture(scope="module")
def quick_compiles():
    """Programs are compiled with few optimizations, which takes less time."""
    import runs

    with runs.quick_compiles():
        yield


@pytest.fixture(scope="module")
def quick_runs():
    """Runs use one device; their programs are compiled once for all workers."""
    import runs

    with runs.quick_runs():
        yield


@pytest.fixture(scope="module")
def finished(quick_runs, tmp_path_factory):
    """A copy of the finished tiny run; read only.

    It is of this worker, because one command at a time works in a run directory.
    """
    import runs

    folder = tmp_path_factory.mktemp("finished") / "run"
    return shutil.copytree(runs.finished_run(), folder)


@pytest.fixture
def no_compilation():
    """Fails a test in which XLA compiles; gives the seconds of each compilation.

    Programs that an earlier test compiled are forgotten first, as they would run
    without a compilation.
    """
    import jax
    import runs

    compilations = runs.compilations()
    if compilations:
        jax.clear_caches()
        compilations.clear()
    yield compilations
    assert not compilations
