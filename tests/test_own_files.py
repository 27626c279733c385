"""Sentences about what is wrong in a person's own Python file."""

import pathlib
import re
import tomllib

import pytest

import stepjax
from stepjax import own_files

IMPORTED_AS = {
    "absl_py": "absl",
    "orbax_checkpoint": "orbax",
    "protobuf": "google",
    "scikit_learn": "sklearn",
}


def test_the_packages_of_the_extras_are_those_of_pyproject():
    path = pathlib.Path(stepjax.__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(path.read_text("utf-8"))["project"]["optional-dependencies"]
    for extra in ("train", "data", "gguf", "report", "tpu", "wandb"):
        for requirement in extras[extra]:
            name = re.match(r"[\w-]+", requirement)[0].replace("-", "_")
            if name not in ("stepjax", "jax"):
                assert own_files.EXTRAS[IMPORTED_AS.get(name, name)] == extra


def test_a_package_of_no_extra_is_blamed_on_the_file_that_imports_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("\nimport no_such_library.part\n")
    try:
        exec(compile(path.read_text(), str(path), "exec"), {})
    except ImportError as error:
        said = own_files.missing_package(error)
    assert said == (
        f"{path}, line 2: imports 'no_such_library', and there is no such module; "
        "expected it to be installed (pip install no_such_library), or to be a file on "
        "Python's path."
    )
    missing = ModuleNotFoundError("No module named 'gguf'", name="gguf")
    assert "pip install -e '.[gguf]'" in own_files.missing_package(missing)
    gone = ModuleNotFoundError("No module named 'stepjax.x'", name="stepjax.x")
    assert own_files.missing_package(gone) == ""
    assert own_files.missing_package(ImportError("cannot import name")) == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3fs", "Install it to read: there is no Python package 's3fs'; expected it"),
        ("gcsfs", "needs the Python package 'gcsfs', .*pip install -e '.\\[tpu\\]'"),
    ],
)
def test_a_package_that_fsspec_misses_is_named(name, expected):
    wrapped = ImportError("Install it to read")
    wrapped.__cause__ = ModuleNotFoundError(f"No module named {name!r}", name=name)
    assert re.match(expected, own_files.missing_package(wrapped))
