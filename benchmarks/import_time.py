"""What ``from stepjax import step_dpo_loss`` adds to ``import jax``.

    python benchmarks/import_time.py

Both are timed one after the other in each of 15 fresh interpreters.
"""

import json
import statistics
import subprocess
import sys

SCRIPT = """
import json, time
def clocks():
    return time.perf_counter(), time.process_time()
marks = [clocks()]
import jax
marks.append(clocks())
from stepjax import step_dpo_loss
marks.append(clocks())
print(json.dumps(marks))
"""


def main() -> None:
    """Prints medians and the largest values."""
    walls, cpus, jax_cpus = [], [], []
    for _ in range(15):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
        )
        first, second, third = json.loads(done.stdout)
        walls.append(1e3 * (third[0] - second[0]))
        cpus.append(1e3 * (third[1] - second[1]))
        jax_cpus.append(1e3 * (second[1] - first[1]))
    median = statistics.median
    print(f"import jax: {median(jax_cpus):.0f} CPU ms")
    print(f"the loss adds {median(cpus):.1f} CPU ms (at most {max(cpus):.1f})")
    print(f"on the clock {median(walls):.1f} ms (at most {max(walls):.1f})")


if __name__ == "__main__":
    main()
