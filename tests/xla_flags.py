"""What XLA is told in every test, and in every process that a test starts."""

import importlib.metadata
import importlib.util

# The emitters of fused instructions that newer versions always use take three times as
# long to compile a program, and nothing here runs long enough to gain by them. libtpu
# reads the same variable, and ends the process at a flag that it does not know.
QUICK = ""
if importlib.metadata.version("jaxlib").startswith("0.10."):
    if importlib.util.find_spec("libtpu") is None:
        QUICK = "--xla_cpu_use_fusion_emitters=false"


def devices(count: int) -> str:
    """Returns the flags for a CPU that is seen as `count` devices."""
    return f"{QUICK} --xla_force_host_platform_device_count={count}".strip()
