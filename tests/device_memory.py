"""The most bytes that arrays take on the devices while a model is read."""

import contextlib
import math

import jax

from stepjax.lm import checkpoint, sharding, weights

# They are called while arrays of a model come to the devices: a piece is there, or all
# that `sharding.on_this_host` copies.
PLACES = ((checkpoint, "_insert"), (weights, "_insert"), (sharding, "on_this_host"))


def held() -> int:
    """Returns the bytes of all arrays, those of each device."""
    return size(jax.live_arrays())


def size(arrays) -> int:
    """Returns the bytes of a tree of arrays, those of each device."""
    # The attribute `addressable_shards` would make new arrays.
    return sum(
        math.prod(x.sharding.shard_shape(x.shape))
        * x.dtype.itemsize
        * len(x.sharding.device_set)
        for x in jax.tree.leaves(arrays)
    )


@contextlib.contextmanager
def most(monkeypatch):
    """Yields a list of how many bytes were held at each of `PLACES`, new ones only."""
    found, before = [], held()

    def watch(module, name):
        real = getattr(module, name)

        def watched(*args, **options):
            found.append(held() - before)
            made = real(*args, **options)
            found.append(held() - before)
            return made

        context.setattr(module, name, watched)

    with monkeypatch.context() as context:
        for place in PLACES:
            watch(*place)
        yield found
