"""What the text of an OpenCL kernel says of itself: its name, its arguments, and the names that it mentions."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tilewright.errors import InputError

_ATTRIBUTE = r"__attribute__\s*\(\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\)\s*"
_KERNEL = re.compile(rf"\b(?:__)?kernel\s+(?:{_ATTRIBUTE})*void\s+(?:{_ATTRIBUTE})*(\w+)\s*\(")
_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_QUALIFIERS = {"const", "restrict", "__restrict", "__restrict__", "volatile", "read_only", "__read_only"}
_SPACES = {"global": "global", "constant": "constant", "local": "local", "private": "private"}
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"long": "i8", "ulong": "u8", "half": "f2", "float": "f4", "double": "f8"},
}
_VECTOR = re.compile(r"([a-z]+?)(?:2|3|4|8|16)?")


@dataclass(frozen=True)
class KernelParameter:
    """One parameter of a kernel."""

    name: str
    space: str
    """global, constant, local, or private for what is passed by value."""
    declared: str
    """Its type as the text spells it, without qualifiers."""
    dtype: np.dtype[np.generic] | None
    """What one element of it is in NumPy, where the type is one of OpenCL's own; macros and structs are not known."""
    is_constant: bool
    """True for a pointer to const: the kernel does not write it."""

    @property
    def is_array(self) -> bool:
        """True for memory."""
        return self.space != "private"


def without_comments(source: str) -> str:
    """The text with every comment and string literal as a space."""
    return _COMMENT.sub(" ", source)


def words(source: str) -> frozenset[str]:
    """The identifiers outside comments."""
    return frozenset(re.findall(r"[A-Za-z_]\w*", without_comments(source)))


def kernel_parameters(source: str, kernel: str | None) -> tuple[str, tuple[KernelParameter, ...]]:
    """(name, parameters in order) of a kernel, or of the only one where no name is given; InputError if there is none.

    The preprocessor is not run: a parameter list with directives in it is refused.
    """
    text = without_comments(source)
    found = {m[1]: m.end() for m in _KERNEL.finditer(text)}
    if not found:
        raise InputError("the source has no kernel: no function that begins with '__kernel void'")
    if kernel is None and len(found) > 1:
        raise InputError(f"the source has {len(found)} kernels ({', '.join(found)}); say which with kernel=")
    name = kernel if kernel is not None else next(iter(found))
    if name not in found:
        raise InputError(f"kernel {name} is not in the source; there is {', '.join(found)}")
    pieces = _split(text, found[name])
    if any("#" in p for p in pieces):
        raise InputError(
            f"the parameters of kernel {name} depend on the preprocessor (a line with # among them); "
            "give the source as a function of the configuration that writes them out"
        )
    if [p.strip() for p in pieces] in ([""], ["void"]):
        return name, ()
    return name, tuple(_parameter(name, n, p) for n, p in enumerate(pieces, 1))


def _split(text: str, start: int) -> list[str]:
    """The parameters of the list that begins at `start`."""
    pieces: list[str] = []
    depth, piece = 1, ""
    for c in text[start:]:
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return [*pieces, piece]
        if c == "," and depth == 1:
            pieces.append(piece)
            piece = ""
        else:
            piece += c
    raise InputError("the source ends within the parameters of a kernel")


def _parameter(kernel: str, number: int, text: str) -> KernelParameter:
    names = re.findall(r"[A-Za-z_]\w*", text)
    if len(names) < 2:
        raise InputError(f"parameter {number} of kernel {kernel}, {text.strip()!r}, has no name or no type")
    pointer = "*" in text or "[" in text
    space = next((_SPACES[s] for n in names if (s := n.removeprefix("__")) in _SPACES), "private")
    kind = " ".join(n for n in names[:-1] if n not in _QUALIFIERS and n.removeprefix("__") not in _SPACES)
    if "image" in kind or kind in ("sampler_t", "event_t", "queue_t", "pipe"):
        raise InputError(
            f"parameter {names[-1]} of kernel {kernel} is of type {kind}; only buffers and numbers are passed"
        )
    if pointer and space == "private":
        space = "global"  # of a type that a macro stands for, or of OpenCL 2's generic address space
    if space == "local":
        raise InputError(
            f"parameter {names[-1]} of kernel {kernel} is local memory; declare the array in the kernel, with a macro "
            "for its size"
        )
    constant = "const" in re.findall(r"\w+", text.partition("*")[0]) or space == "constant"
    return KernelParameter(names[-1], space, kind, _dtype(kind, pointer), pointer and constant)


def _dtype(kind: str, pointer: bool) -> np.dtype[np.generic] | None:
    """The NumPy type of an OpenCL type; vectors behind pointers are their elements."""
    parts = kind.split()
    if "unsigned" in parts or "signed" in parts:
        rest = [p for p in parts if p not in ("unsigned", "signed")] or ["int"]
        kind = ("u" if "unsigned" in parts else "") + rest[0]
    element = _VECTOR.fullmatch(kind) if pointer else None
    code = _TYPES.get(element[1] if element else kind)
    return None if code is None else np.dtype(code)


__all__ = ["KernelParameter", "kernel_parameters", "without_comments", "words"]
