"""Reads the scheduled HLO text that XLA dumps, and counts bytes and matrix products.

It counts in three points otherwise than the compiler's own cost analysis: the body of a
loop counts as often as it runs, a slice counts as the slice and not as the array that
it is cut from, and arrays in a chip's vector memory (layouts with ``S(1)``) count for
nothing, since they are not in HBM. Padding of tiles is not counted. How often a loop
runs, its *trips*, is the constant in its condition.

The text does not say which parts of its operands a Pallas kernel reads. It counts with
the bytes that it states itself, and without a statement with all of its operands. What
`stepjax.lm.decode_kernel` states is compared with the blocks that it moves in
`tests/lm/test_decode_kernel.py`.
"""

import dataclasses
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
_LINE = re.compile(r"^  (ROOT )?%(\S+) = (.*)$", re.S)
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "iota",
}


@dataclasses.dataclass
class Instruction:
    """One line of HLO: its type as text, opcode, operand names, and attributes."""

    name: str
    type: str
    opcode: str
    operands: list[str]
    literal: str  # the text between the parentheses
    rest: str
    root: bool


def dumped(program: str, *command: str) -> tuple[str, dict, str]:
    """Runs a Python script that compiles, and reads the schedule that XLA dumps.

    Args:
      program: name of the compiled function.
      *command: the script and its arguments.

    Returns:
      (what it prints, `parse` of the schedule, name of its entry computation).
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        done = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        name = f"*jit_{program}*.after_optimizations.txt"
        (file,) = pathlib.Path(folder).glob(name)
        text = file.read_text()
    entry = re.search(r"^ENTRY %(\S+) ", text, re.MULTILINE)[1]
    return done.stdout, parse(text), entry


def parse(text: str) -> dict[str, dict[str, Instruction]]:
    """Returns computation name → instruction name → instruction, in order."""
    computations, current, pending = {}, None, []

    def flush():
        if pending:
            item = _instruction("\n".join(pending))
            if item:
                current[item.name] = item
            pending.clear()

    for line in text.split("\n"):
        head = _HEAD.match(line)
        if head:
            flush()
            current = computations.setdefault(head[1], {})
        elif current is not None and line.startswith(("  %", "  ROOT %")):
            flush()
            pending.append(line)
        elif pending:
            pending.append(line)
    flush()
    return computations


def _instruction(text: str) -> Instruction | None:
    match = _LINE.match(text)
    if not match:
        return None
    root, name, rest = bool(match[1]), match[2], match[3]
    at = _closing(rest, " ")  # the type ends at the first outer space
    kind, rest = rest[:at], rest[at + 1 :]
    opcode, _, rest = rest.partition("(")
    end = _closing(rest, ")")
    operands = re.findall(r"%([^\s,(){}]+)", rest[:end])
    return Instruction(name, kind, opcode, operands, rest[:end], rest[end:], root)


def _closing(text: str, sign: str) -> int:
    """Returns the first place of a sign outside of all brackets."""
    depth = 0
    for at, letter in enumerate(text):
        if letter == sign and not depth:
            return at
        depth += (letter in "({[") - (letter in ")}]")
    return len(text)


def size(kind: str, memory: str = "hbm") -> int:
    """Returns the bytes of a type; arrays in vector memory count only with "any"."""
    total = 0
    for name, dims, layout in _ARRAY.findall(kind):
        if name not in _BYTES or memory == "hbm" and "S(" in layout:
            continue
        total += _BYTES[name] * math.prod(int(d) for d in dims.split(",") if d)
    return total


def _called(item: Instruction, key: str) -> str | None:
    match = re.search(rf"{key}=%([^\s,()]+)", item.rest)
    return match[1] if match else None


def trips(module, loop: Instruction) -> int | None:
    """Returns how often a while loop runs, or None when that depends on data."""
    items = list(module[_called(loop, "condition")].values())
    items += [
        i for item in items for i in module.get(_called(item, "calls"), {}).values()
    ]
    if any(item.opcode in ("and", "or", "not") for item in items):
        return None
    constants = {
        int(match[1])
        for item in items
        if item.opcode == "constant" and (match := re.fullmatch(r"(\d+)", item.literal))
    }
    return constants.pop() if len(constants) == 1 else None


def loops(module) -> list[Instruction]:
    """Returns every while loop."""
    every = (item for items in module.values() for item in items.values())
    return [item for item in every if item.opcode == "while"]


def body(loop: Instruction) -> str:
    """Returns the name of a while loop's body."""
    return _called(loop, "body")


def traffic(
    module, name: str, sums: dict[str, int] | None = None, tries: int | None = None
) -> int:
    """Returns the HBM bytes that one run of a computation reads and writes.

    Args:
      module: from `parse`.
      name: of the computation, e.g. `body` of a loop.
      sums: filled with instruction name → bytes, when given.
      tries: how often to count a loop whose trips depend on data; None refuses it.
    """
    total, items = 0, module[name]
    for item in items.values():
        if item.opcode in _FREE or item.opcode.endswith("-done"):
            continue
        if item.opcode == "while":
            count = trips(module, item)
            count = tries if count is None else count
            if count is None:
                raise ValueError(
                    f"the trips of {item.name} depend on data; expected `tries`."
                )
            inner: dict[str, int] = {}
            bytes_ = count * traffic(module, body(item), inner, tries)
            if sums is not None:
                sums |= {f"{count} x {key}": count * n for key, n in inner.items()}
        elif item.opcode == "conditional":
            branches = re.findall(
                r"(?:branch_computations=\{|, )%([^\s,}]+)", item.rest
            )
            named = re.findall(r"(?:true|false)_computation=%([^\s,]+)", item.rest)
            known = [b for b in (*branches, *named) if b in module]
            bytes_ = max(traffic(module, branch, None, tries) for branch in known)
        else:
            bytes_ = _moved(module, items, item)
        total += bytes_
        if sums is not None and item.opcode != "while":
            sums[f"{item.opcode} {item.name}"] = bytes_
    return total


def products(module, name: str) -> float:
    """Returns the FLOPs of the matrix products of one run of a computation.

    XLA for TPU writes them as convolutions, with batch axes as axes of the window. Only
    products of two numbers count, not those of a number with the window's padding.

    Args:
      module: from `parse`.
      name: of the computation, whose loops must have known trips.
    """
    total, items = 0.0, module[name]
    for item in items.values():
        if item.opcode == "convolution":
            left, right = (items[name].type for name in item.operands[:2])
            total += _convolution(item, _dims(left), _dims(right))
        elif item.opcode == "while":
            inside = products(module, body(item))
            count = trips(module, item)
            if inside and count is None:
                raise ValueError(
                    f"the trips of {item.name} depend on data; expected a constant."
                )
            total += inside * (count or 0)
        elif item.opcode == "dot":
            raise ValueError(f"{item.name} is a dot; expected a convolution.")
        else:
            inner = [_called(item, "calls"), _called(item, "to_apply")]
            total += sum(products(module, i) for i in inner if i in module)
    return total


def _dims(kind: str) -> list[int]:
    return [int(d) for d in _ARRAY.search(kind)[2].split(",") if d]


def _convolution(item: Instruction, left: list[int], right: list[int]) -> float:
    names = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", item.rest)
    out = dict(zip(names[3], _dims(item.type), strict=True))
    left = dict(zip(names[1], left, strict=True))
    right = dict(zip(names[2], right, strict=True))
    window = re.search(r"window=\{([^}]*)\}", item.rest)
    window = dict(part.split("=") for part in window[1].split()) if window else {}

    total = 2.0 * out["b"] * out["f"] * right["i"]
    for at in range(len(names[3]) - 2):
        axis = str(at)

        def number(key, default=1, at=at):
            value = window[key].split("x")[at] if key in window else str(default)
            return int(value.split("_")[0])

        stride, apart, spread = map(number, ("stride", "lhs_dilate", "rhs_dilate"))
        pad = number("pad", 0)
        last = (left[axis] - 1) * apart
        places = (
            place * stride + tap * spread - pad
            for place in range(out[axis])
            for tap in range(right[axis])
        )
        total *= sum(0 <= p <= last and p % apart == 0 for p in places)
    return total


def _moved(module, items, item: Instruction) -> int:
    """Bytes of one instruction: what it reads of each operand, and what it writes."""
    kinds = [items[name].type if name in items else "" for name in item.operands]
    if item.opcode == "fusion":
        inside = module[_called(item, "calls")]
        return _fusion(module, inside, kinds, item)
    stated = re.search(r'"bytes_accessed":"?(\d+)', item.rest)
    if stated and item.opcode == "custom-call":
        return int(stated[1])
    if item.opcode in ("dynamic-slice", "slice", "gather"):
        return _hbm(kinds[0], size(item.type, "any")) + size(item.type)
    if item.opcode == "dynamic-update-slice":
        return size(kinds[1]) + _hbm(item.type, size(kinds[1], "any"))
    if item.opcode in ("copy-start", "slice-start", "async-start"):
        # (to, from, ...) of a transfer; one end may lie in vector memory.
        arrays = _ARRAY.findall(item.type)
        sizes = [size(f"{a}[{b}]{c}", "any") for a, b, c in arrays[:2]]
        return sum(_hbm(f"{a}[{b}]{c}", min(sizes)) for a, b, c in arrays[:2])
    return sum(map(size, kinds)) + size(item.type)


def _hbm(kind: str, bytes_: int) -> int:
    return 0 if "S(" in kind else bytes_


def _fusion(module, inside, kinds, item: Instruction) -> int:
    total = 0
    for inner in inside.values():
        if inner.opcode == "parameter":
            kind = kinds[int(inner.literal)]
            total += _hbm(kind, _read(module, inside, inner, size(kind, "any")))
    root = next(i for i in inside.values() if i.root)
    single = root.opcode != "tuple"
    written = [root] if single else [inside[name] for name in root.operands]
    for result, (a, b, c) in zip(written, _ARRAY.findall(item.type), strict=False):
        whole = f"{a}[{b}]{c}"
        total += _hbm(whole, _written(module, inside, result, size(whole, "any")))
    return total


def _read(module, inside, item: Instruction, whole: int) -> int:
    """Bytes that a fused computation reads of one of its values."""
    total = whole if item.root else 0
    for user in inside.values():
        for at, name in enumerate(user.operands):
            if name != item.name:
                continue
            if user.opcode in ("bitcast", "copy"):  # inside a fusion: another layout
                total += _read(module, inside, user, whole)
            elif user.opcode in ("dynamic-slice", "slice", "gather"):
                total += size(user.type, "any") if at == 0 else 0
            elif user.opcode == "dynamic-update-slice" and at == 0:
                continue  # updated in place
            elif user.opcode == "fusion":
                nested = module[_called(user, "calls")]
                (parameter,) = (
                    i
                    for i in nested.values()
                    if i.opcode == "parameter" and i.literal == str(at)
                )
                read = _read(module, nested, parameter, whole)
                root = next(i for i in nested.values() if i.root)
                if _same(nested, root, parameter):  # only a change of shape
                    read = _read(module, inside, user, whole)
                total += read
            else:
                total += whole
    return min(total, whole)


def _same(inside, item: Instruction, other: Instruction) -> bool:
    while item.opcode in ("bitcast", "copy"):
        item = inside[item.operands[0]]
    return item.name == other.name


def _written(module, inside, result: Instruction, whole: int) -> int:
    """Bytes that a fused computation writes of one of its results."""
    while result.opcode == "bitcast":
        result = inside[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return size(inside[result.operands[1]].type, "any")
    if result.opcode == "fusion" and "tuple" not in result.type:
        nested = module[_called(result, "calls")]
        root = next(i for i in nested.values() if i.root)
        return _written(module, nested, root, whole)
    return whole
