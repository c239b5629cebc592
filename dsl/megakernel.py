"""Several launches in a row as one kernel, for devices on which starting a kernel takes longer than a short one runs.

The work-groups of all parts are one range. Each takes the next number from a counter, which says what part it works on,
waits until all work-groups of the part before are done, does its part, and is counted. A number is only taken by a
work-group that runs, and work waits for smaller numbers alone: some work-group can always go on, however few the device
holds at a time (Merrill and Garland, "Single-pass Parallel Prefix Scan with Decoupled Look-back", 2016). The last one
sets the counters back to zero for the next run.

A part is a kernel's text turned into a function: its `__local` variables become members of a struct, of which the
kernel holds a union, and the functions that tell a work-item where it is become macros.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from tilewright.dsl.lowering import Launch
from tilewright.dsl.target import Target

COUNTERS = "tw_counters"
"""The argument that holds the counters: `counters` 32-bit words, all zero before the first run."""

_KERNEL = re.compile(r"^(?:__attribute__\(\((.*?)\)\)\s+)?__kernel void (\w+)\((.*?)\) \{\n", re.MULTILINE | re.DOTALL)
_LOCAL = re.compile(r"^ *__local ([\w ]+?) (\w+)((?:\[\d+\])*)( __attribute__\(\(aligned\(\d+\)\)\))?;\n", re.MULTILINE)
_FUNCTION = re.compile(r"^static (?:inline )?(?:__attribute__\(\(\w+\)\) )?[\w ]+?[ *](\w+)\(", re.MULTILINE)
_MACRO = re.compile(r"^#define (\w+)", re.MULTILINE)
_ASYNCHRONOUS = "cp.async.bulk"
_LINE = 32
"""Words of a cache line."""


@dataclass(frozen=True)
class Part:
    """A launch and, for each of its arguments, the name of the whole kernel's argument."""

    launch: Launch
    arguments: tuple[str, ...]

    @property
    def items(self) -> int:
        """Work-items of a work-group."""
        return math.prod(self.launch.local_size or (1,))

    @property
    def groups(self) -> int:
        """Work-groups."""
        return math.prod(self.launch.global_size) // self.items


@dataclass(frozen=True)
class _Text:
    """A kernel's source, taken apart."""

    before: str
    """Macros and functions."""
    parameters: tuple[str, ...]
    body: str
    """Without the variables in local memory."""
    local: tuple[tuple[str, str], ...]
    """Names and declarations of the variables in local memory."""
    names: tuple[str, ...]
    """Functions in ``before``."""
    macros: tuple[str, ...]


@cache
def _taken_apart(source: str) -> _Text | None:
    """The pieces of a source with one kernel; None if it is written in another way."""
    found = list(_KERNEL.finditer(source))
    if len(found) != 1:
        return None
    before, body = source[: found[0].start()], source[found[0].end() :]
    local = _LOCAL.findall(body)
    body = _LOCAL.sub("", body)
    if re.search(r"__local [^*;(]*;", body) or re.search(r"\b(get_\w+|barrier)\s*\(", before) or "__constant" in before:
        return None
    return _Text(
        before,
        tuple(found[0][3].split(", ")),
        body,
        tuple((name, f"{kind} {name}{sizes}{aligned};") for kind, name, sizes, aligned in local),
        tuple(_FUNCTION.findall(before)),
        tuple(dict.fromkeys(_MACRO.findall(before))),
    )


def _text(launch: Launch) -> _Text:
    text = _taken_apart(launch.source)
    assert text is not None
    return text


def can_be_part(launch: Launch, target: Target) -> bool:
    """Whether a launch can be one of several in a kernel."""
    handoff, group = target.handoff, launch.local_size
    if handoff is None or group is None or 0 in launch.global_size or _taken_apart(launch.source) is None:
        return False
    return math.prod(group) % target.sub_group == 0


def megakernel(parts: Sequence[Part], fixed: Collection[str], target: Target) -> Launch:
    """One launch that does what `parts` do one after the other, with `COUNTERS` as its last argument.

    Arguments in ``fixed`` share no memory with what is written.

    All parts must satisfy `can_be_part`; where the target has no barrier for some of a work-group's items, they also
    need work-groups of one size.
    """
    handoff = target.handoff
    assert handoff is not None
    items = max(p.items for p in parts)
    assert handoff.some_items or all(p.items == items for p in parts)
    given = [(p.launch, own, a) for p in parts for own, a in zip(p.launch.arguments, p.arguments, strict=True)]
    written = {a for launch, own, a in given if own in launch.writes}
    names = tuple(dict.fromkeys(a for p in parts for a in p.arguments))
    place = {name: f"b{n}" for n, name in enumerate(names)}
    functions = {launch: f"part{n}" for n, launch in enumerate(dict.fromkeys(p.launch for p in parts))}
    texts = [_function(launch, name, items) for launch, name in functions.items()]
    parameters = [
        f"__global {'const ' * (n not in written)}uchar* {'restrict ' * (n in fixed)}{place[n]}" for n in names
    ]
    source = "".join((handoff.text, *texts, _kernel(parts, functions, place, parameters)))
    total = sum(p.groups for p in parts)
    writes = (*(n for n in names if n in written), COUNTERS)
    return Launch("tw_megakernel", source, (total * items,), (items,), (*names, COUNTERS), writes)


def counters(parts: int) -> int:
    """Words that a kernel of so many parts counts in: the next number, and the work-groups of each part that are done.

    Each is in a line of its own, so that those who wait for one do not hold up those who count in another.
    """
    return (1 + parts) * _LINE


def _function(launch: Launch, name: str, items: int) -> str:
    """A launch's kernel as a function of its buffers, its local memory and the number of its work-group."""
    text = _text(launch)
    assert launch.local_size is not None
    own = math.prod(launch.local_size)
    counts = [g // n for g, n in zip(launch.global_size, launch.local_size, strict=True)]
    renamed = "".join(f"#define {n} {name}_{n}\n" for n in text.names)
    room = f"struct {name}_room {{ {' '.join(declaration for _, declaration in text.local)} }};\n" if text.local else ""
    parameters = (*text.parameters, *([f"__local struct {name}_room* tw_room"] if text.local else []), "uint tw_group")
    macros = [
        *((n, f"(tw_room->{n})") for n, _ in text.local),
        ("get_group_id(d)", f"((size_t)({_chosen('tw_group', counts)}))"),
        ("get_local_id(d)", f"((size_t)({_chosen('(uint)get_local_id(0)', launch.local_size)}))"),
        ("get_global_id(d)", f"(get_group_id(d) * {_size(launch.local_size)} + get_local_id(d))"),
    ]
    if own < items:
        macros.append(("barrier(flags)", f"TW_BARRIER({own})"))
    defined = "".join(f"#define {m} {replacement}\n" for m, replacement in macros)
    names = (*text.macros, *text.names, *(m.partition("(")[0] for m, _ in macros))
    return (
        f"{renamed}{text.before}{room}{defined}"
        f"static inline __attribute__((always_inline)) void {name}({', '.join(parameters)}) {{\n{text.body.rstrip()}\n"
        + "".join(f"#undef {n}\n" for n in names)
    )


def _chosen(number: str, counts: Sequence[int]) -> str:
    """A flat number's coordinate along dimension `d`, the first running fastest."""
    if len(counts) == 1:
        return f"(d) == 0 ? {number} : 0u"
    result, step = "0u", math.prod(counts)
    for d in reversed(range(len(counts))):
        step //= counts[d]
        result = f"(d) == {d} ? {number} / {step}u % {counts[d]}u : {result}"
    return result


def _size(sizes: Sequence[int]) -> str:
    """The size along dimension `d`."""
    text = "1"
    for d in reversed(range(len(sizes))):
        text = f"((d) == {d} ? {sizes[d]} : {text})"
    return text


def _kernel(parts: Sequence[Part], functions: dict[Launch, str], place: dict[str, str], parameters: list[str]) -> str:
    """The kernel itself."""
    items = max(p.items for p in parts)
    members = " ".join(f"struct {f}_room {f};" for launch, f in functions.items() if _text(launch).local)
    starts = list(accumulate((p.groups for p in parts), initial=0))
    lines = [
        f"__attribute__((reqd_work_group_size({items}, 1, 1)))",
        f"__kernel void tw_megakernel({', '.join((*parameters, f'volatile __global uint* {COUNTERS}'))}) {{",
        *([f"    __local union {{ {members} }} room;"] if members else []),
        "    __local uint taken;",
        "    const uint item = get_local_id(0);",
        f"    if (item == 0) taken = atomic_inc({COUNTERS});",
        "    barrier(CLK_LOCAL_MEM_FENCE);",
        "    const uint number = taken;",
        "    uint part = 0, first = 0, awaited = 0;",
        *(
            f"    if (number >= {starts[n]}) {{ part = {n}; first = {starts[n]}; awaited = {parts[n - 1].groups}; }}"
            for n in range(1, len(parts))
        ),
        "    if (item == 0 && part > 0) {",
        f"        while (TW_COUNT({COUNTERS} + {_LINE} * part) != awaited) TW_PAUSE();",
        "        TW_FENCE();",
        "    }",
        "    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);",
    ]
    for n, p in enumerate(parts):
        text = _text(p.launch)
        casts = [re.sub(r"\brestrict\b|\w+$", "", q).strip() for q in text.parameters]
        given = [f"({cast}){place[a]}" for cast, a in zip(casts, p.arguments, strict=True)]
        given += [f"&room.{functions[p.launch]}"] if text.local else []
        call = f"{functions[p.launch]}({', '.join((*given, 'number - first'))});"
        guard = f"if (item < {p.items}) " if p.items < items else ""
        fence = "TW_FENCE_COPIES(); " if _ASYNCHRONOUS in text.before and n else ""
        lines.append(f"    if (part == {n}) {{ {fence}{guard}{call} }}")
    lines += [
        "    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);",
        "    if (item == 0) {",
        "        TW_FENCE();",
        f"        const uint done = atomic_inc({COUNTERS} + {_LINE} * (part + 1)) + 1;",
        f"        if (part == {len(parts) - 1} && done == {parts[-1].groups}) {{",
        f"            for (int i = 0; i <= {len(parts)}; ++i) {COUNTERS}[{_LINE} * i] = 0;",
        "        }",
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"
