"""What `import stepjax` and the losses load, seen in a fresh interpreter."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import stepjax

REFUSED = [
    "flax",
    "optax",
    "orbax",
    "transformers",
    "tensorflow",
    "tensorflow_datasets",
    "ml_collections",
    "sentencepiece",
]

HOOK = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ImportError("refused by the test: " + name)

sys.meta_path.insert(0, Refuse())

def loaded():
    return set(sys.modules)

def roots(modules):
    first = {{name.split(".")[0] for name in modules}}
    return sorted(first - set(sys.stdlib_module_names))
"""


def run(script, refused=REFUSED):
    """Runs `script` after the hook; what it prints last is JSON."""
    done = subprocess.run(
        [sys.executable, "-c", HOOK.format(refused=refused) + script],
        cwd=Path(stepjax.__file__).parent.parent,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", REFUSED)
def test_the_hook_refuses(name):
    script = f"""
try:
    import {name}
except ImportError as error:
    print(json.dumps(str(error)))
"""
    assert run(script) == f"refused by the test: {name}"


def test_import_stepjax_loads_nothing():
    new = run(
        """
before = loaded()
import stepjax
print(json.dumps([sorted(loaded() - before), stepjax.__version__, dir(stepjax)]))
"""
    )
    assert new[0] == ["stepjax"]  # not even a module of the standard library
    assert new[1] == "0.1.0"
    assert set(stepjax.__all__) <= set(new[2])


def test_the_loss_loads_jax_only():
    new = run(
        """
import jax, jax.numpy
before = loaded()
from stepjax import step_dpo_loss
new = loaded() - before
zero = jax.numpy.zeros(2)
loss = step_dpo_loss(zero, zero, zero, zero)
after = loaded() - before
print(json.dumps([sorted(n for n in new if n.startswith("stepjax")), roots(new),
                  roots(after), [round(float(x), 6) for x in loss]]))
"""
    )
    assert new[0] == ["stepjax", "stepjax.losses"]
    assert new[1] == ["stepjax"]  # beyond what jax itself had loaded
    assert not set(new[2]) & set(REFUSED)
    assert new[3] == [0.693147, 0.693147]


def test_the_first_line_of_a_command_comes_before_jax():
    """It takes 0.1 s, and what comes then takes seconds."""
    new = run(
        """
import contextlib, io
class Refused(Exception):
    pass
class RefuseJax(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            raise Refused("jax")
sys.meta_path.insert(0, RefuseJax())
arguments = ["run", "--config=configs/quickstart.py", "--workdir=runs/one"]
sys.argv = ["stepjax", *arguments]
from stepjax import main
said, error = io.StringIO(), ""
with contextlib.redirect_stderr(said):
    try:
        main.main(sys.argv)
    except Refused as e:
        error = str(e)
print(json.dumps([said.getvalue().splitlines(), error, roots(loaded())]))
""",
        refused=["numpy"],
    )
    first = f"stepjax {stepjax.__version__}: run --config=configs/quickstart.py"
    assert new[0] == [f"{first} --workdir=runs/one", "starting JAX"]
    assert "jax" in new[1] and not Path("runs/one").exists()
    assert not {"numpy", "rich", "tensorboardX", "flax", "optax"} & set(new[2])


# With JAX only. A module that is None in sys.modules is taken to be not installed.
HIDE = f"""
for name in {REFUSED + ["absl", "etils", "rich", "scipy"]!r}:
    sys.modules[name] = None
"""


def test_help_and_version_need_no_extra():
    new = run(
        HIDE
        + """
import contextlib, io
before, said = loaded(), io.StringIO()
from stepjax import main
with contextlib.redirect_stdout(said):
    status = [main.main(["stepjax", *words.split()])
              for words in ("--help", "run --help", "--version")]
print(json.dumps([status, said.getvalue(), roots(loaded() - before)]))
""",
        refused=["jax", "numpy"],
    )
    assert new[0] == [0, 0, 0] and new[1].endswith(f"stepjax {stepjax.__version__}\n")
    assert "usage: stepjax run --config=FILE --workdir=DIR [options]" in new[1]
    assert new[2] == ["stepjax"]


@pytest.mark.parametrize(
    "module", ["search", "iterate", "config", "settings", "ablate", "dpo"]
)
def test_a_missing_extra_is_named_in_one_sentence(module):
    error = run(
        HIDE
        + f"""
try:
    import stepjax.{module}
except ModuleNotFoundError as e:
    print(json.dumps([str(e), e.name]))
"""
    )
    assert error == [
        "everything in stepjax but its losses needs the extra `train`, and flax, "
        "ml_collections, optax, orbax, transformers are not installed: pip install "
        "-e '.[train]' in the checkout of stepjax.",
        "flax",
    ]


@pytest.mark.parametrize(
    ("hidden", "extra"), [("ml_collections", "train"), ("httpx2", "data")]
)
def test_a_command_without_its_extra_says_which(hidden, extra):
    found = run(
        f"""
import contextlib, io
from stepjax import main
def work(argv):
    raise ModuleNotFoundError("No module named {hidden!r}", name="{hidden}.part")
main._command = work
said = io.StringIO()
with contextlib.redirect_stderr(said):
    status = main.main(["stepjax", "run"])
print(json.dumps([status, said.getvalue()]))
"""
    )
    assert found == [
        1,
        f"stepjax: run needs the Python package '{hidden}', which is not "
        "installed; install the extra that brings it: pip install -e "
        f"'.[{extra}]' in the checkout of stepjax.\n",
    ]


# The process around a command.


# A shell may start a job in the background with Ctrl-C ignored, and the job hands that
# on to what it starts. This turns Ctrl-C on again before the command begins.
HEARS_CTRL_C = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, "-m", "stepjax", *arguments],
        cwd=Path(stepjax.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("command", ["--help", "config"])
def test_a_closed_pipe_ends_a_command_in_silence(command):
    reader, writer = os.pipe()
    os.close(reader)  # like `| head -0`
    done = subprocess.run(
        [sys.executable, "-m", "stepjax", command],
        cwd=Path(stepjax.__file__).parent.parent,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_ctrl_c_while_a_command_starts_is_one_line(tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\n\ndef get_config():\n    print('loading', file=sys.stderr, "
        "flush=True)\n    time.sleep(60)\n"
    )
    with process("run", f"--config={slow}", f"--workdir={tmp_path / 'x'}") as started:
        lines = [started.stderr.readline(), started.stderr.readline()]
        assert lines[1] == "loading\n"
        started.send_signal(signal.SIGINT)
        said = started.stderr.read()
        assert started.wait(20) == 130
    assert said == "stepjax: interrupted before anything was begun.\n"


def test_every_public_name_is_there():
    from stepjax import losses, preference_losses, reference_free_losses

    own = {}
    for module in (losses, preference_losses, reference_free_losses):
        for name, value in vars(module).items():
            if not name.startswith("_") and value.__class__.__name__ == "function":
                own.setdefault(name, value)
    assert len(own) == 17 and set(own) == set(stepjax.__all__)
    for name, value in own.items():
        assert getattr(stepjax, name) is value
    with pytest.raises(AttributeError, match="has no attribute 'step_ppo'"):
        stepjax.step_ppo  # noqa: B018
