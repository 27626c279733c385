"""Which file may import which: the method, the packages beside it, and lm/.

The files of the method are directly in stepjax/. They import no package beside them,
so that worlds, runs and evaluation reach them through arguments only.
"""

import ast
import graphlib
import pathlib

import pytest

import stepjax

ROOT = pathlib.Path(stepjax.__file__).parent
BESIDE = {"initial_data", "evaluation", "report", "planning", "worlds", "run", "cli"}
DRIVERS = {"__main__", "main", "iterate", "ablate"}  # they may import everything
SETTINGS = {"config", "settings"}  # read by drivers and by the packages beside
LM_MAY_IMPORT = {"lm", "forest", "losses", "interrupts", "os_errors"}


def sources():
    """Module, without "stepjax.", → its text."""
    paths = {path.relative_to(ROOT): path.read_text("utf-8") for path in files()}
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): text
        for path, text in paths.items()
        if path != pathlib.Path("__init__.py")
    }


def files():
    return sorted(ROOT.rglob("*.py"))


def import_graph(texts):
    """Module → the modules of stepjax that it imports, anywhere in its text."""
    graph = {module: set() for module in texts}
    for module, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import"
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [
                    name if name.removeprefix("stepjax.") in texts else node.module
                    for name in whole
                ]
            inside = (n.removeprefix("stepjax.") for n in names if n[:8] == "stepjax.")
            graph[module] |= set(inside)
    return graph


def violations(graph):
    """What breaks a rule, as "MODULE imports MODULE"."""
    found = []
    for module, imported in graph.items():
        room = module.split(".")[0]
        for other in sorted(imported):
            theirs = other.split(".")[0]
            if room == "lm":
                allowed = theirs in LM_MAY_IMPORT
            elif room in DRIVERS | SETTINGS:
                allowed = room in DRIVERS or theirs not in DRIVERS
            elif room in BESIDE:
                allowed = theirs not in DRIVERS
            else:  # the method
                allowed = theirs not in BESIDE | DRIVERS | SETTINGS
            if not allowed:
                found.append(f"{module} imports {other}")
    return found


def test_every_file_imports_only_what_its_room_may():
    graph = import_graph(sources())
    assert violations(graph) == []
    # The walk sees packages, modules, and imports inside functions.
    assert "lm.sharding" in graph["dpo"] and "evaluation.stages" in graph["iterate"]
    assert "planning.plan" in graph["main"] and {"lm", "run"} <= graph.keys()


def test_every_package_is_a_known_room():
    rooms = {module.split(".")[0] for module in sources() if "." in module}
    assert "run" in rooms and rooms <= BESIDE | {"lm"}


def test_no_circles():
    tuple(graphlib.TopologicalSorter(import_graph(sources())).static_order())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("search", "from stepjax.run import rundir"),
        ("pairs", "def f():\n    from stepjax.worlds.arithmetic import solve"),
        ("judge", "import stepjax.evaluation.answers"),
        ("dpo", "from stepjax import settings"),
        ("propose", "from stepjax.iterate import run"),
        ("lm.train", "from stepjax import dpo"),
        ("lm.stops", "from stepjax.prompts import marker"),
        ("evaluation.stages", "from stepjax import iterate"),
        ("settings", "from stepjax import ablate"),
    ],
)
def test_a_made_up_violation_is_seen(module, text):
    texts = sources()
    texts[module] += f"\n{text}\n"
    (found,) = violations(import_graph(texts))
    assert found.startswith(f"{module} imports ")


def test_a_made_up_circle_is_seen():
    texts = sources()
    texts["records"] += "\nfrom stepjax.pairs import Pair\n"
    assert violations(import_graph(texts)) == []
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(import_graph(texts)).static_order())
