"""The function that a setting names: found, and refused before anything takes long."""

import sys

import pytest
from runs import CONFIG, command

from stepjax import main, own_import

OWN_CODE = """
import functools

score, number = len, 3

def two(choices, seed): ...
def none(): ...
def named(*, choices): ...
async def later(choices): ...
def yields(choices): yield []
def more(choices, seed=0, *rest, **options): ...
filled = functools.partial(two, seed=1)

class Judge:
    def __call__(self, choices): ...

judge = Judge()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module own_code in the working directory, which is not on Python's path."""
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    (tmp_path / "needs_more.py").write_text("import no_such_library_at_all\n")
    (tmp_path / "no_python.py").write_text("score = len\ndef f(:\n")
    (tmp_path / "raises.py").write_text("\nnumbers = {}\nnumbers['a']\n")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_code", None)


def test_a_function_of_the_working_directory_is_found(module, tmp_path):
    before = list(sys.path)
    assert own_import.load("judge.by", "own_code:score") is len
    assert sys.path == before


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere:score", "there is no module 'nowhere' in "),
        ("own_code.py:score", "expected 'module:function', without '.py'"),
        ("own_code:scroe", "has no function 'scroe'"),
        ("own_code:number", "has 'number', but it is a whole number (3), no function"),
        ("own_code:two", "its arguments are (choices, seed) (missing a required argum"),
        ("own_code:none", "its arguments are () (too many positional arguments); expe"),
        ("own_code:named", "called with one argument, the list of problems in flight,"),
        ("own_code:Judge", "this is a class, and calling it makes an object; expected"),
        ("own_code:later", "this is an async function, whose result must be awaited"),
        ("own_code:yields", "this is a generator, because it has a yield; expected"),
        ("own_code:", "expected 'module:function', such as 'own_code:score'"),
        (":score", "expected 'module:function', such as 'own_code:score'"),
        ("../own_code:score", "these are no names of a module and of a function"),
        (":nan", "these are no names of a module and of a function"),
        ("needs_more:score", "needs_more.py, line 1: imports 'no_such_library_at_all'"),
        ("no_python:score", "no_python.py, line 2: this is no Python (invalid syntax)"),
        ("raises:score", "raises.py, line 3: KeyError: 'a'; expected a module that"),
    ],
)
def test_what_cannot_be_found_is_named(module, value, words):
    with pytest.raises(ValueError) as caught:
        own_import.load("judge.by", value)
    assert str(caught.value).startswith(f"judge.by={value!r}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["more", "filled", "judge"])
def test_what_can_be_called_with_one_list_is_taken(module, name):
    assert callable(own_import.load("judge.by", f"own_code:{name}"))


def test_both_settings_are_loaded(module):
    assert own_import.wrong("self", "self") == []
    assert own_import.wrong("own_code:score", "own_code:score") == []
    (said,) = own_import.wrong("own_code:score", "own_code:no")
    assert said.startswith("search.propose_by='own_code:no': the module has no")
    lines = own_import.wrong("nowhere:score", "own_code:no")
    assert [line.partition("=")[0] for line in lines] == [
        "judge.by",
        "search.propose_by",
    ]


def test_a_command_refuses_a_function_before_jax_starts(
    module, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(main, "_start", None)  # would start JAX
    words = [f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}"]
    assert command("run", *words, "--config.judge.by=own_code:two") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("stepjax: judge.by='own_code:two': its arguments are (choi")
    assert not (tmp_path / "run").exists()
