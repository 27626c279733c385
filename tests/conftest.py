"""Settings of the whole suite; pytest reads this before any test imports jax."""

import os

# Tests run on the CPU, seen as eight devices, and never ask a hub for a file.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["COLUMNS"] = "200"  # tables do not depend on the terminal
