"""The options of the command line as absl flags; `stepjax.cli.help` explains them."""

from absl import flags
from ml_collections import config_flags

from stepjax.cli import load_config
from stepjax.cli.help import OPTIONS

MODES = ("greedy", "unseen", "judge", "search", "training")


def _text(name: str) -> str:
    return OPTIONS[name][1]


CONFIG = config_flags.DEFINE_config_file("config", None, _text("config"))
flags.FLAGS["config"].parser = load_config.Parser()  # says what is wrong with a file
WORKDIR = flags.DEFINE_string("workdir", None, _text("workdir"))
MODEL = flags.DEFINE_string("model", None, _text("model"))
MODE = flags.DEFINE_enum("mode", "all", (*MODES, "all"), _text("mode"))
BENCHMARK = flags.DEFINE_list("benchmark", "test", _text("benchmark"))
SEEDS = flags.DEFINE_list("seeds", "0,1,2", _text("seeds"))
ARMS = flags.DEFINE_list("arms", "self,random,oracle,sft,srlm", _text("arms"))
HOSTS = flags.DEFINE_integer("hosts", 1, _text("hosts"), lower_bound=1)
HOST_TIMEOUT = flags.DEFINE_float(
    "host-timeout", 300.0, _text("host-timeout"), lower_bound=1.0
)
REDO = flags.DEFINE_string("redo", "", _text("redo"))
DRY_RUN = flags.DEFINE_bool("dry-run", False, _text("dry-run"))
DATA = flags.DEFINE_enum("data", None, ("ift", "eft", "pairs"), _text("data"))
PROBLEM = flags.DEFINE_string("problem", "", _text("problem"))
WRONG = flags.DEFINE_bool("wrong", False, _text("wrong"))
TIES = flags.DEFINE_bool("ties", False, _text("ties"))
RANDOM = flags.DEFINE_bool("random", False, _text("random"))
MAP = flags.DEFINE_bool("map", False, _text("map"))
COUNT = flags.DEFINE_integer("n", 3, _text("n"), lower_bound=1)
TOPOLOGY = flags.DEFINE_string("topology", None, _text("topology"))
GPU = flags.DEFINE_string("gpu", None, _text("gpu"))
STAGE = flags.DEFINE_enum("stage", "all", ("sft", "dpo", "search", "all"), "")
UTILISATION = flags.DEFINE_float("utilisation", 0.4, _text("utilisation"))
SUGGEST = flags.DEFINE_bool("suggest", True, _text("suggest"))
OUT = flags.DEFINE_string("out", None, _text("out"))
DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), _text("dtype"))
VERIFY = flags.DEFINE_bool("verify", False, _text("verify"))
