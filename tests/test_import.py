"""What `import stepjax` and the losses load, seen in a fresh interpreter."""

import json
import os
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
sys.modules["jax"] = None  # importing it is an error
arguments = ["run", "--config=configs/quickstart.py", "--workdir=runs/one"]
sys.argv = ["stepjax", *arguments]
from stepjax import main
said, error = io.StringIO(), ""
with contextlib.redirect_stderr(said):
    try:
        main.main(sys.argv)
    except ImportError as e:
        error = str(e)
print(json.dumps([said.getvalue().splitlines(), error, roots(loaded())]))
""",
        refused=[name for name in REFUSED if name != "ml_collections"],
    )
    first = f"stepjax {stepjax.__version__}: run --config=configs/quickstart.py"
    assert new[0] == [f"{first} --workdir=runs/one", "starting JAX"]
    assert "jax" in new[1] and not Path("runs/one").exists()
    assert not {"numpy", "rich", "tensorboardX"} & set(new[2])


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
