"""Config files: with numbers that have no meaning, or that are no config files at all.

Each is a file on the disk, read as `--config` reads it, and checked as every command
checks it before anything heavy is imported.
"""

import random

import ml_collections
from fuzz import Case

from stepjax import config
from stepjax.cli import load_config
from stepjax.run import ranges

_HEAD = "from stepjax import config\n\n\ndef get_config():\n    c = config.default()\n"
_MAY_BE_MINUS_ONE = ("mesh.data", "mesh.fsdp", "mesh.tensor")
_NAN, _INF = 'float("nan")', 'float("inf")'
# Combinations that cannot work though each setting could, and some that can.
_SENSELESS = [
    "c.sft.phases = ()",
    "c.sft.phases = (config.phase(), config.phase())",
    "c.sft.phases = (config.phase(ift=0.0, eft=0.0),)",
    "c.sft.phases = (config.phase(epochs=2, steps=2),)",
    "c.sft.phases = (config.phase(epochs=0),)",
    "c.search.temperature = 0.0",
    "c.search.max_step_tokens = c.search.context_tokens",
    "c.search.width = 3; c.pairs.min_margin = 5",
    "c.judge.score = 'single'; c.pairs.min_margin = 6",
    "c.model.num_heads = 3; c.model.num_kv_heads = 2",
    "c.model.head_dim = 7",
    "c.mesh.data = -1; c.mesh.fsdp = -1",
    "c.data.world = 'arithmetic'; c.data.questions = ()",
    "c.data.questions = (5, 0)",
    "c.data.questions = (2.5,)",
    "c.data.questions = ('4',)",
    "c.dpo.updates = (5,)",
    "c.dpo.updates = (5, 5, 0)",
    "c.improve_by = 'sft'",
    "c.judge.kind = 'ratings'; c.pairs.best_beats_all = True",
    "c.judge.kind = 'ratings'; c.judge.mode = 'logprob'",
    "c.dpo.optimizer.learning_rate = 1.0; c.dpo.optimizer.weight_decay = 2.0",
    "c.dpo.updates = (5, 5, 5); c.dpo.optimizer.warmup_steps = 5",
    "c.data.make_eft = True; c.mcts.temperature = 0.0; c.teacher.backend = 'replay'",
    "c.sft.verdict_words = ('a, b',)",
    "c.sft.from_policy = True",
    "c.dpo.optimizer.b2 = 0.99999999",
    "c.search.temperature = 1e-40",
    "c.judge.by = 'oracle'; c.data.world = ''",
    "c.model.init = 'hf:'",
    "c.judge.schedule = 'swiss'; c.judge.by = 'module:function'",
]
_SENSIBLE = [
    "c.iterations = 0",
    "c.judge.score = 'single'; c.pairs.min_margin = 5",
    "c.dpo.updates = (5, 5, 5); c.dpo.optimizer.warmup_steps = 4",
    "c.sft.phases = (config.phase('a', eft=0.0), config.phase('b', ift=0.0))",
    "c.mesh.fsdp = 2",
    "c.search.on_tie = 'append'",
    "c.judge.temperature = 0.0",
    "c.model.rope_theta = 1e6; c.model.rms_norm_eps = 1e-5",
    "c.data.questions = ()",
]
_NO_CONFIGS = [
    ("empty", b""),
    ("NUL bytes", b"\0\0\0"),
    ("not UTF-8", b"# \xff\n"),
    ("a syntax error", b"def get_config(:\n"),
    ("deep nesting", b"x = " + b"(" * 5000),
    ("raises", b"def get_config():\n    raise KeyError('x')\n"),
    ("raises when imported", b"1 / 0\n"),
    ("ends the process", b"import sys\nsys.exit(3)\n"),
    ("returns nothing", b"def get_config():\n    pass\n"),
    ("returns a dict", b"def get_config():\n    return {}\n"),
    ("get_config is a number", b"get_config = 5\n"),
    ("needs a text", b"def get_config(text):\n    return text\n"),
    ("no such module", b"import no_such_module_at_all\n"),
    ("an unknown setting", (_HEAD + "    c.serch = 4\n    return c\n").encode()),
    ("a bytes object", b"def get_config():\n    return b'x'\n"),
    ("recursion", b"def get_config():\n    return get_config()\n"),
]


def _leaves(section, before=""):
    for name, value in section.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f"{before}{name}.")
        elif name != "phases":
            yield f"{before}{name}", value


_SETTINGS = list(_leaves(config.default()))
_OF_A_PHASE = list(_leaves(config.phase()))


def _number(draw, name, usual):
    """A text of Python that has no meaning for a number."""
    if isinstance(usual, float):
        ways = [_NAN, _INF, f"-{_INF}", "-1.0", "-1e-3", "1e30", "1e-40", "'x'", "None"]
    else:
        ways = ["-7", "2**63", "-(2**63)", "10**16", "'x'", "None", "2.5", _NAN, _INF]
        if name not in _MAY_BE_MINUS_ONE:
            ways.append("-1")
    return draw.choice(ways)


def _spoiled(draw):
    """(what was done, line of Python) for one setting of any kind."""
    of_phase = draw.random() < 0.3
    name, usual = draw.choice(_OF_A_PHASE if of_phase else _SETTINGS)
    if isinstance(usual, bool):
        value = draw.choice(("1", "'no'", "None", "2.0"))
    elif isinstance(usual, int | float):
        value = _number(draw, name, usual)
    elif isinstance(usual, tuple):
        value = draw.choice(("5", "'x'", "None", f"({_NAN},)", "(-1,)", "((),)"))
    elif f"{name}" in ranges.SETTINGS or name.endswith("schedule"):
        value = draw.choice(("'nonsense'", "5", "None", "'x' * 5000"))
    else:
        texts = ("5", "None", "()", "b'x'", r"'a\0'", r"'\ud800'", "'x' * 10**6")
        value = draw.choice(texts)
    if not of_phase:
        return f"{name} = {value}", f"c.{name} = {value}"
    line = f"p = config.phase(); p.{name} = {value}; c.sft.phases = (p,)"
    return f"phase {name} = {value}", line


def case(seed, folder):
    """One config file."""
    draw = random.Random(seed)
    path = folder / "settings.py"
    chance = draw.random()
    if chance < 0.15:
        what, content = draw.choice(_NO_CONFIGS)
        wrong: bool | None = True
        path.write_bytes(content)
    else:
        if chance < 0.3:
            what, wrong = draw.choice(_SENSELESS), True
        elif chance < 0.4:
            what, wrong = draw.choice(_SENSIBLE), False
        else:
            what, wrong = _spoiled(draw)[1], True
        path.write_text(f"{_HEAD}    {what}\n    return c\n")

    def attempt():
        try:
            ranges.check(load_config.load(str(path)))
        except load_config.flags.Error as error:
            raise ValueError(str(error)) from error

    return Case(what, wrong, attempt)
