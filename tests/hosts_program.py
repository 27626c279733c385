"""What test_hosts.py runs as two hosts: waiting, agreeing, sharing, placing arrays."""

import json
import pathlib
import sys

import jax
import numpy as np

from stepjax import forest
from stepjax.lm import checkpoint, hosts, sharding, train


def main(folder: pathlib.Path, count: int) -> None:
    hosts.start(count)
    found = {"count": hosts.count(), "devices": jax.device_count()}
    first, second = (lambda: 10 + hosts.index()), (lambda: 20 + hosts.index())
    found["agreed"] = [hosts.agreed("n", decide) for decide in (first, second)]
    items = [f"item {n}" for n in range(7)]
    mine = [f"{item} by {hosts.index()}" for item in hosts.share(items)]
    found["merged"] = hosts.merge(mine, folder, "items")
    # A batch that every host has whole, and arrays that it then has in parts.
    mesh = sharding.make_mesh(1, 4, 1)
    rows = forest.pack([forest.path_tree([1, 2, n], [0, 1, 1]) for n in range(8)], 3)
    placed = train.put_batch(mesh, jax.tree.map(lambda x: x[None], rows))
    found["rows here"] = sum(
        part.data.shape[1] for part in placed.tokens.addressable_shards
    )
    found["digest"] = checkpoint.array_digests(placed)[".tokens"]
    spec = jax.sharding.PartitionSpec(None, None, "tensor")
    halves = jax.sharding.NamedSharding(sharding.host_mesh(2), spec)
    tokens = train.put_batch(mesh, np.arange(8).reshape(1, 2, 4))
    local = sharding.on_this_host({"x": tokens}, {"x": halves})["x"]
    found["local"] = [local.is_fully_addressable, np.asarray(local).ravel().tolist()]
    checkpoint.save_tree(folder / "saved", {"rows": placed})
    if hosts.first():
        try:
            hosts.barrier("supper", seconds=1)
        except TimeoutError as error:
            found["late"] = str(error)
    hosts.barrier("end")
    (folder / f"host_{hosts.index()}.json").write_text(json.dumps(found))


main(pathlib.Path(sys.argv[1]), int(sys.argv[2].removeprefix("--hosts=")))
