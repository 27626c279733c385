"""The most bytes that arrays take on the devices while a model is read."""

import contextlib

import jax

from stepjax.lm import checkpoint, sharding, weights

# They are called while arrays of a model come to the devices: a piece is there, or all
# that `sharding.on_this_host` copies.
PLACES = ((checkpoint, "_insert"), (weights, "_insert"), (sharding, "on_this_host"))


def held() -> int:
    """Returns the bytes of all arrays, those of each device."""
    shards = (x for array in jax.live_arrays() for x in array.addressable_shards)
    return sum(shard.data.nbytes for shard in shards)


def size(params) -> int:
    """Returns the bytes of parameters, those of each device."""
    leaves = jax.tree.leaves(params)
    return sum(x.data.nbytes for leaf in leaves for x in leaf.addressable_shards)


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
