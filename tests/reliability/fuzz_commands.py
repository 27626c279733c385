"""Command lines that are wrong, each in a process of its own.

`python fuzz_commands.py` imports the command line once and then forks: it reads a JSON
list of words per line, and writes a line with the exit status and what was printed.
"""

import functools
import json
import os
import pathlib
import random
import select
import subprocess
import sys
import tempfile

from fuzz import LIMIT, Case

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'tests' / 'tiny_config.py'}"
NUMBERS = ("nan", "inf", "-inf", "-1", "9223372036854775808", "1e30", "x", "")
FIELDS = (
    *("dpo.beta", "dpo.optimizer.learning_rate", "search.temperature", "search.width"),
    *(
        "judge.top_p",
        "train.row_length",
        "model.head_dim",
        "model.rms_norm_eps",
        "seed",
    ),
    *("sft.phases[0].steps", "sft.phases[0].optimizer.b2", "mcts.phase.batch_size"),
    *(
        "sft.verdict_weight",
        "data.test_count",
        "search.slots",
        "dpo.updates",
        "mesh.fsdp",
    ),
)
WRONG = (
    ["ablate", CONFIG, "--workdir={}", "--arms="],
    ["ablate", CONFIG, "--workdir={}", "--arms=self,self"],
    ["ablate", CONFIG, "--workdir={}", "--seeds="],
    ["ablate", CONFIG, "--workdir={}", "--seeds=1,x"],
    ["ablate", CONFIG, "--workdir={}", f"--seeds={'9' * 5000}"],
    ["eval", CONFIG, "--workdir={}", "--model=M0", f"--benchmark={'x' * 240}.jsonl"],
    ["eval", CONFIG, "--workdir={}", "--model=M0", f"--benchmark={'x' * 5000}"],
    ["eval", CONFIG, "--workdir={}", "--model=M0", "--benchmark=/dev/zero"],
    ["eval", CONFIG, "--workdir={}", "--model=M0", "--benchmark="],
    ["eval", CONFIG, "--workdir={}", f"--model={'9' * 5000}"],
    ["eval", CONFIG, "--workdir={}", "--model=M-1"],
    ["eval", CONFIG, "--workdir={}", "--model=M0", "--mode=luck"],
    ["export", CONFIG, "--workdir={}", "--model=M1", "--out=/proc/x"],
    ["export", CONFIG, "--workdir={}", "--model=M1", "--out=/dev/null/x"],
    ["run", CONFIG, f"--workdir=/{'x' * 300}"],
    ["run", CONFIG, "--workdir=gs://bucket/run"],
    ["run", CONFIG, "--workdir="],
    ["run", CONFIG],
    ["run", CONFIG, "--workdir={}", "--redo=nonsense"],
    ["run", CONFIG, "--workdir={}", "--hosts=x"],
    ["run", "--config=", "--workdir={}"],
    ["run", "--config=/dev/zero", "--workdir={}"],
    ["run", "--config=/nowhere.py", "--workdir={}"],
    ["run", f"--config={'x' * 5000}", "--workdir={}"],
    ["run", CONFIG, "--workdir={}", "--config.sft.phases=1"],
    ["run", CONFIG, "--workdir={}", "--config.sft.phases[9].steps=1"],
    ["run", CONFIG, "--workdir={}", "--config.serch.width=4"],
    ["run", CONFIG, "--workdir={}", "--config.tokenizer=/dev/zero"],
    ["run", CONFIG, "--workdir={}", "further", "words"],
    ["show", CONFIG, "--workdir={}", "--wrong", "--ties"],
    ["nonsense"],
)


def case(seed, folder):
    """One command line; `folder` is new."""
    draw = random.Random(seed)
    wrong = draw.random() < 0.9
    if not wrong:
        words = ["config", CONFIG, f"--config.seed={draw.randrange(2**32)}"]
    elif draw.random() < 0.5:
        name, value = draw.choice(FIELDS), draw.choice(NUMBERS)
        if name in ("dpo.updates", "mesh.fsdp") or name.endswith("steps"):
            value = draw.choice(("nan", "-7", "x"))
        words = ["run", CONFIG, "--workdir={}", f"--config.{name}={value}"]
    else:
        words = draw.choice(WRONG)
    words = [word.replace("{}", str(folder / "run")) for word in words]

    def attempt():
        status, said = ask(words)
        assert "Traceback" not in said, said[-2000:]
        assert not (folder / "run").exists()
        assert (status == 0) or (status == 2 and "stepjax: " in said), (status, said)
        if status:
            lines = [line for line in said.splitlines() if line[:9] == "stepjax: "]
            raise ValueError("\n".join(lines))

    return Case(" ".join(words)[:200], wrong, attempt)


def ask(words):
    """Returns exit status and standard error of a command."""
    server = _server()
    server.stdin.write(json.dumps(words) + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], 2 * LIMIT)[0]:
        raise TimeoutError(words)
    return json.loads(server.stdout.readline())


@functools.cache
def _server():
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        text=True,
    )


def _run(words, printed):
    """Runs a command in a child; returns its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    import signal

    signal.alarm(LIMIT)  # ends a command that hangs with status -14
    sys.argv = ["stepjax", *words]
    try:
        from stepjax import main

        main.entry()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


def serve():
    """Answers each line of words until there are no more."""
    from absl import flags  # noqa: F401, what every command imports

    from stepjax import main  # noqa: F401
    from stepjax.cli import arguments, config_files, explain  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryFile() as printed:
            status = _run(json.loads(line), printed)
            printed.seek(0)
            said = printed.read().decode("utf-8", "replace")
        print(json.dumps([status, said]), flush=True)


if __name__ == "__main__":
    serve()
