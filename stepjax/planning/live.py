"""Memory of a traced program at its fullest moment, by arithmetic.

Nothing is compiled. The equations are taken in the order in which the program was
traced. A result takes memory from where it is computed until it is last read. What XLA
computes inside of the operation that reads it takes none: conversions, sums of two
arrays, slices and the like are *fused*. They take memory only where a matrix product, a
loop, or the caller reads them. XLA may choose another order, copy more, or reuse more,
so the figure is an estimate; `tests/planning/test_live.py` compares it with a compiled
program.
"""

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
from jax.extend import core

# The result is the operand itself, seen in another way.
_SAME = {
    *("reshape", "squeeze", "expand_dims", "transpose", "sharding_constraint"),
    *("reshard", "name", "stop_gradient", "optimization_barrier", "copy", "copy_p"),
}
# The result is new, and fused operands are computed while they are read.
_READS_FUSED = {
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax"),
    *("argmin", "gather", "reduce_prod"),
}
# The result is new, and operands have to be in memory.
_WHOLE = {
    *("dot_general", "sort", "top_k", "cumsum", "cumlogsumexp"),
    *("cummax", "pallas_call", "random_bits", "conv_general_dilated", "scan", "while"),
    "cond",
}
# The result takes the place of the first operand, if that is not read again.
_IN_PLACE = {"dynamic_update_slice", "scatter", "scatter-add", "scatter_add"}

Bytes = collections.Counter  # kind of array → bytes


class _Value:
    """An array of the program: its bytes, its kind, and what it is fused from."""

    __slots__ = ("buffer", "fused", "kind", "owned", "size", "sources")

    def __init__(self, size: int, kind: str, *, fused: bool = False, owned=True):
        self.size, self.kind, self.fused = size, kind, fused
        self.owned = owned  # whether its memory may be taken over
        self.sources: tuple[_Value, ...] = ()  # of a fused value: arrays in memory
        self.buffer: _Value | None = None  # of a fused value: where it was written


class _Op(NamedTuple):
    """An equation whose operands are values.

    `parts` are the bodies of a loop or a condition, see `_Body`; `carried` says which
    operands a loop takes over, in the order of its first results.
    """

    name: str
    reads: tuple[_Value, ...]
    writes: tuple[_Value, ...]
    parts: tuple["_Body", ...] = ()
    carried: tuple[int, ...] = ()


class _Body(NamedTuple):
    ops: list[_Op]
    reads: tuple[_Value, ...]
    writes: tuple[_Value, ...]


def fullest(
    traced: jax.stages.Traced,
    argument_kind: Callable[[str, jax.core.ShapedArray], str],
    kind: Callable[[jax.core.ShapedArray], str],
) -> dict[str, int]:
    """Returns the bytes of each kind of array when the program needs most memory.

    Args:
      traced: by ``jax.jit(function).trace(...)``, on one device.
      argument_kind: (path of an argument, its shape) → its kind.
      kind: shape of any other array → its kind.
    """
    closed, held = traced.jaxpr, Bytes()
    arguments = []
    infos = jax.tree_util.tree_leaves_with_path(traced.args_info)
    for (path, info), variable in zip(infos, closed.jaxpr.invars, strict=True):
        name = argument_kind(jax.tree_util.keystr(path), variable.aval)
        value = _Value(_size(variable.aval), name, owned=info.donated)
        held[name] += value.size
        arguments.append(value)
    walk = _Walk(kind)
    body = walk.body(closed.jaxpr, closed.consts, arguments)
    held.update(_fullest(_needed(body)))
    return dict(held)


def _size(aval) -> int:
    dtype = getattr(aval, "dtype", None)
    item = getattr(dtype, "itemsize", 8)
    return math.prod(getattr(aval, "shape", ())) * item


class _Walk:
    """Turns a program into a flat list of operations on values."""

    def __init__(self, kind: Callable):
        self._kind = kind
        self._platforms: set[_Value] = set()  # which branch is for this platform

    def body(self, jaxpr: core.Jaxpr, consts: Sequence, arguments: Sequence) -> _Body:
        """Returns the operations of a program that reads these values."""
        ops: list[_Op] = []
        outputs = self._inline(jaxpr, consts, arguments, ops)
        return _Body(ops, tuple(arguments), tuple(outputs))

    def _inline(self, jaxpr, consts, arguments, ops) -> list[_Value]:
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable in jaxpr.constvars:
            known[variable] = _Value(_size(variable.aval), self._kind(variable.aval))

        def read(x) -> _Value:
            if isinstance(x, core.Literal):
                return _Value(0, "")
            return known[x]

        for equation in jaxpr.eqns:
            reads = tuple(map(read, equation.invars))
            writes = self._equation(equation, reads, ops)
            known.update(zip(equation.outvars, writes, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def _equation(self, equation, reads, ops) -> Sequence[_Value]:
        name, params = equation.primitive.name, equation.params
        if name in _SAME:
            return reads[: len(equation.outvars)]
        inner = [_closed(x) for x in jax.tree.leaves(params, is_leaf=_is_jaxpr)]
        inner = [x for x in inner if x is not None]
        if name == "cond" and reads[0] in self._platforms:
            return self._inline(*inner[-1], reads[1:], ops)  # not of a CPU: the default
        if inner and name not in _WHOLE | _READS_FUSED | _IN_PLACE:
            return self._inline(*inner[0], reads, ops)
        fused = name not in _WHOLE | _READS_FUSED | _IN_PLACE
        writes = [
            _Value(_size(x.aval), self._kind(x.aval), fused=fused)
            for x in equation.outvars
        ]
        if name == "platform_index" or (
            fused and any(x in self._platforms for x in reads)
        ):
            self._platforms.update(writes)
        parts, carried = (), ()
        if name == "scan":
            first, count = params["num_consts"], params["num_carry"]
            carried = tuple(range(first, first + count))
            parts = (self._loop(inner[0], reads, carried),)
        elif name == "while":
            before = params["cond_nconsts"]
            first = params["body_nconsts"]
            count = len(reads) - before - first
            reads = reads[before:]  # the condition is small
            carried = tuple(range(first, first + count))
            body = _closed(params["body_jaxpr"])
            parts = (self._loop(body, reads, carried),)
        elif name == "cond":
            reads = reads[1:]
            parts = tuple(self._loop(branch, reads, ()) for branch in inner)
        for part in parts:
            inside = zip(part.writes, writes, strict=True)
            self._platforms.update(x for of, x in inside if of in self._platforms)
        ops.append(_Op(name, reads, tuple(writes), parts, carried))
        return writes

    def _loop(self, closed, reads: Sequence[_Value], carried: Sequence[int]) -> _Body:
        """Returns a body whose arguments lie in the memory of what is around it."""
        jaxpr, consts = closed
        arguments = [
            _Value(_size(x.aval), self._kind(x.aval), owned=place in carried)
            for place, x in enumerate(jaxpr.invars)
        ]
        both = zip(reads, arguments, strict=True)
        self._platforms.update(x for of, x in both if of in self._platforms)
        return self.body(jaxpr, consts, arguments)


def _is_jaxpr(x) -> bool:
    return isinstance(x, core.Jaxpr | core.ClosedJaxpr)


def _closed(x):
    """Returns (program, constants), or None for anything else."""
    if isinstance(x, core.ClosedJaxpr):
        return x.jaxpr, x.consts
    return (x, ()) if isinstance(x, core.Jaxpr) else None


def _needed(body: _Body, wanted: Sequence[bool] | None = None) -> _Body:
    """Returns a body without operations whose results nobody reads, as XLA does.

    Args:
      body: the operations.
      wanted: which results are read; None for all.
    """
    results = [x for i, x in enumerate(body.writes) if wanted is None or wanted[i]]
    used, kept = set(results), []
    for op in reversed(body.ops):
        if not any(x in used for x in op.writes):
            continue
        if op.parts:
            op = _needed_loop(op, used)
        used.update(op.reads)
        kept.append(op)
    return _Body(kept[::-1], body.reads, tuple(results))


def _needed_loop(op: _Op, used: set[_Value]) -> _Op:
    carried = len(op.carried)
    wanted = [i < carried or x in used for i, x in enumerate(op.writes)]
    if op.name == "cond":
        wanted = [x in used for x in op.writes]
    parts = tuple(_needed(part, wanted) for part in op.parts)
    read = set()
    for part in parts:
        inside = {x for inner in part.ops for x in inner.reads} | set(part.writes)
        read |= {place for place, x in enumerate(part.reads) if x in inside}
    places = [p for p in range(len(op.reads)) if p in read or p in op.carried]
    where = {place: new for new, place in enumerate(places)}
    return op._replace(
        reads=tuple(op.reads[place] for place in places),
        writes=tuple(x for x, keep in zip(op.writes, wanted, strict=True) if keep),
        parts=parts,
        carried=tuple(where[place] for place in op.carried),
    )


def _in_memory(values: Iterable[_Value]) -> list[_Value]:
    """Returns the arrays in memory that reading these values reads."""
    found = []
    for value in values:
        if value.buffer is not None:
            found.append(value.buffer)
        elif value.fused:
            found.extend(value.sources)
        else:
            found.append(value)
    return found


def _fullest(body: _Body) -> Bytes:
    """Returns what a body takes at its fullest moment, without its arguments."""
    schedule = _schedule(body)
    last = {}
    for moment, step in enumerate(schedule):
        for value in step.reads:
            last[value] = moment
    for value in _in_memory(body.writes):
        last[value] = len(schedule)
    live, most = Bytes(), Bytes()
    given = set(body.reads)
    placed: dict[_Value, int] = {}  # value → bytes of its own
    taken: set[_Value] = set()
    for moment, step in enumerate(schedule):
        for value in step.writes:
            over = next(
                (
                    x
                    for x in step.may_take
                    if x.size == value.size
                    and last.get(x, -1) <= moment
                    and x not in taken
                    and x.owned
                    and (x in placed or x in given)
                ),
                None,
            )
            if over is not None:
                taken.add(over)
                placed[value] = placed.pop(over, 0)
                if placed[value]:
                    live[over.kind] -= placed[value]
                    live[value.kind] += placed[value]
            else:
                placed[value] = value.size
                live[value.kind] += value.size
        now = live + step.inside
        if now.total() > most.total():
            most = now
        for value in {*step.reads, *step.writes}:
            if value in placed and last.get(value, moment) <= moment:
                live[value.kind] -= placed.pop(value)
    return most


class _Step(NamedTuple):
    """A moment: what is read, what is written, what may be overwritten."""

    reads: tuple[_Value, ...]
    writes: tuple[_Value, ...]
    may_take: tuple[_Value, ...] = ()
    inside: Bytes = Bytes()


def _schedule(body: _Body) -> list[_Step]:
    """Decides which fused values are written to memory, and when."""
    steps: list[_Step] = []
    results = set(body.writes)
    overwritten = {op.reads[0] for op in body.ops if op.name in _IN_PLACE}

    def write(value: _Value) -> None:
        """Writes a fused value to memory, if it is not there."""
        if not value.fused or value.buffer is not None:
            return
        sources = tuple(value.sources)
        value.buffer = _Value(value.size, value.kind)
        steps.append(_Step(sources, (value.buffer,), sources))

    for op in body.ops:
        if op.writes[0].fused:
            sources = tuple(dict.fromkeys(_in_memory(op.reads)))
            for value in op.writes:
                value.sources = sources
                # Zeros wait for nothing, and XLA fills arrays with them early.
                zeros = not any(x.size for x in sources)
                if value in results or (value in overwritten and zeros):
                    write(value)
            continue
        if op.name not in _READS_FUSED:
            for value in op.reads:
                write(value)
        reads = tuple(_in_memory(op.reads))
        may_take: tuple[_Value, ...] = ()
        if op.name in _IN_PLACE:
            may_take = reads[:1]
        elif op.carried:
            may_take = tuple(_in_memory([op.reads[place] for place in op.carried]))
        inside = max(
            (_fullest(part) for part in op.parts), key=Bytes.total, default=Bytes()
        )
        steps.append(_Step(reads, op.writes, may_take, inside))
    return steps
