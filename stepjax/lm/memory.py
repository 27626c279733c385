"""Keys and values of contexts that a slot held earlier: kept, and copied back.

A tree search goes back to nodes whose contexts it held some steps ago. Each slot of a
`Sampler` has a row of a pool on the device for them, and a tree of token ids on the
host says which place of that row belongs to which token after which other tokens.
Holding an earlier context again is then a copy, and the model computes nothing.

Axis names: L layers, P slots, C context capacity, M places of a slot's row, T tokens
that are copied at once, K key/value heads, D head size.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stepjax import forest
from stepjax.lm import decode, sharding
from stepjax.lm import model as lm

_BUCKET = 64  # tokens copied at once are compiled in multiples of it

Ids = Sequence[int]


@functools.partial(jax.jit, static_argnames="length", donate_argnames="pool")
def remember(pool, contexts, start, place, counts, *, length: int):
    """Copies consecutive tokens of each slot's context into its row of the pool.

    Args:
      pool: keys and values [L, P, K, M, D]; donated.
      contexts: caches [L, P, K, C, D].
      start: index in the context of each slot's first token to copy, [P] int32.
      place: place of that token in the pool, [P] int32; the next tokens get the next
        places.
      counts: tokens to copy, [P] int32; 0 leaves a slot's row as it is.
      length: T, at least every count.

    Returns:
      The pool with these tokens.
    """
    room, capacity = pool.key.shape[3], contexts.key.shape[3]
    step = jnp.arange(length)
    source = jnp.minimum(start[:, None] + step, capacity - 1)  # [P, T]
    # What is not copied goes to places outside the pool, each to another one.
    target = jnp.where(step < counts[:, None], place[:, None] + step, room + step)
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(0, 2, 4),
        inserted_window_dims=(3,),
        scatter_dims_to_operand_dims=(3,),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )

    def write(row, cache):
        tokens = jnp.take_along_axis(cache, source[None, :, None, :, None], 3)
        return jax.lax.scatter(
            row,
            target[..., None],
            tokens,
            numbers,
            unique_indices=True,
            mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
        )

    return jax.tree.map(write, pool, contexts)


@functools.partial(jax.jit, donate_argnames="contexts")
def restore(contexts, pool, places):
    """Copies remembered tokens from the pool into the contexts by a gather.

    Args:
      contexts: caches [L, P, K, C, D]; donated.
      pool: keys and values [L, P, K, M, D].
      places: place in the pool of each token of each context, [P, C] int32; -1 leaves
        what the context holds there.

    Returns:
      The contexts with these tokens.
    """
    index = jnp.maximum(places, 0)[None, :, None, :, None]
    known = (places >= 0)[None, :, None, :, None]

    def write(cache, row):
        return jnp.where(known, jnp.take_along_axis(row, index, 3), cache)

    return jax.tree.map(write, contexts, pool)


class Tree:
    """Which place of the pool holds which token, for one slot.

    Each place is a node: a token after the tokens on the way to it from the root.
    Places are given out in order, so those of new tokens of one path follow each other.
    """

    def __init__(self, room: int):
        """Makes an empty tree of at most `room` tokens."""
        self._room = room
        self._places: dict[tuple[int, int], int] = {}  # (place before, token) → place

    def __len__(self) -> int:
        """Returns how many tokens are remembered."""
        return len(self._places)

    def find(self, ids: Ids) -> list[int]:
        """Returns the places of the longest remembered prefix of the ids."""
        places, place = [], -1
        for token in ids:
            place = self._places.get((place, token))
            if place is None:
                break
            places.append(place)
        return places

    def add(self, ids: Ids) -> tuple[int, int, int]:
        """Remembers the ids, as many of them as there is room for.

        Returns:
          (index of the first id that is new, its place, how many ids are new).
        """
        known = self.find(ids)
        first = len(self._places)
        before = known[-1] if known else -1
        new = ids[len(known) : len(known) + self._room - first]
        for place, token in enumerate(new, first):
            self._places[before, token] = place
            before = place
        return len(known), first, len(new)


class Memory:
    """A pool of keys and values on the device, with a tree of each slot on the host.

    Attributes:
      pool: keys and values [L, P, K, M, D] each, split as the contexts are.
      trees: of each slot.
    """

    def __init__(self, contexts: lm.KeyValues, mesh: Mesh, tokens: int):
        """Allocates an empty pool.

        Args:
          contexts: caches [L, P, K, C, D]; the pool has their type.
          mesh: from `sharding.make_mesh`.
          tokens: M, most tokens remembered per slot.
        """
        shardings = sharding.split_caches(mesh)
        slots = contexts.key.shape[1]

        @jax.jit
        def allocate():
            empty = decode.empty(contexts, tokens)
            return jax.lax.with_sharding_constraint(empty, shardings)

        self.pool = allocate()
        self._tokens, self._split = tokens, sharding.split_rows(mesh)
        self.trees = [Tree(tokens) for _ in range(slots)]

    def forget(self, slot: int) -> None:
        """Gives the slot an empty tree."""
        self.trees[slot] = Tree(self._tokens)

    def save(self, contexts: lm.KeyValues, held: dict[int, Ids]) -> None:
        """Remembers what slots hold; what there is no room for is left out.

        Args:
          contexts: caches [L, P, K, C, D].
          held: slot → all token ids that its context holds.
        """
        start, place, counts = np.zeros((3, len(self.trees)), np.int32)
        for slot, ids in held.items():
            start[slot], place[slot], counts[slot] = self.trees[slot].add(ids)
        if not counts.any():
            return
        length = forest.bucket(int(counts.max()), _BUCKET)
        self.pool = remember(
            self.pool,
            contexts,
            *jax.device_put((start, place, counts), self._split),
            length=length,
        )

    def load(
        self, contexts: lm.KeyValues, wanted: dict[int, tuple[Ids, Ids]]
    ) -> tuple[lm.KeyValues, dict[int, int]]:
        """Copies back what is remembered after the tokens that slots hold.

        Args:
          contexts: caches [L, P, K, C, D]; donated if anything is copied.
          wanted: slot → (ids that it holds, ids that should come after them).

        Returns:
          (the contexts, slot → how many of the second ids it holds now).
        """
        places = np.full((len(self.trees), contexts.key.shape[3]), -1, np.int32)
        counts = {}
        for slot, (held, after) in wanted.items():
            found = self.trees[slot].find([*held, *after])[len(held) :]
            places[slot, len(held) : len(held) + len(found)] = found
            counts[slot] = len(found)
        if any(counts.values()):
            places = jax.device_put(places, self._split)
            contexts = restore(contexts, self.pool, places)
        return contexts, counts
