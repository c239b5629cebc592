"""What is known while an op is being specialised: sizes, parameters, tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import counted
from tilewright.dsl.names import Checked, TensorDeclaration
from tilewright.dsl.program import Expr, Tensor
from tilewright.dsl.sizes import LARGEST, Sizes
from tilewright.dsl.syntax import Literal, Name, Node
from tilewright.dsl.values import Kind, Value, cast
from tilewright.errors import ShapeError


@dataclass(frozen=True)
class Dim:
    """One dimension of a whole tensor in the short form: its size, and its name in the header if it has one."""

    size: int
    label: str | None = None


class Environment:
    """Sizes and tensors as they become known, statement by statement."""

    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self.op = checked.name
        self.sizes = Sizes(checked.name)
        self.parameters: dict[str, Value] = {}
        self.tensors: dict[str, Tensor] = {}
        self.dims: dict[str, tuple[Dim, ...]] = {}
        self.storage: dict[str, Kind] = {}
        self.declared = {t.name: t for t in (*checked.inputs, *checked.outputs)}
        self.old = {t.old_of: t.name for t in checked.inputs if t.old_of}
        """The input with the value from before the op, by the output that is updated."""
        self.equations = list(checked.equations)
        self.open_dims: list[tuple[Node, int, str]] = []
        """Declared sizes that could not be checked yet: expression, size found, place."""
        self.hints = list(checked.hints)
        self.limits = list(checked.limits)
        self.fast_math = checked.fast_math
        self.precision = "fp32" if checked.precision in ("", "fp32") else "tf32"
        """The program's, so far."""
        self.padded: dict[str, str] = {}
        """Copies made for calls of ops that declare another pad than the tensor has, with what they are copies of."""
        self.count = len(checked.statements)
        """Statements so far, those of called ops included."""

    def error(self, message: str) -> ShapeError:
        return ShapeError(f"op {self.op}: {message}")

    def store(self, target: str, shape: tuple[int, ...], value: Value) -> Expr:
        """Make the target tensor; gives the value in its type."""
        declared = self.declared.get(target)
        if declared is None:  # an intermediate keeps the type it is computed in
            dtype, storage = value.expr.dtype, value.storage
        else:
            updated = self.tensors[self.old[target]].dtype if target in self.old else None
            dtype = declared.dtype or updated or value.storage.dtype
            storage = Kind(dtype)
            self.bind_dims(declared, shape)
        if target in self.old and self.tensors[self.old[target]].shape != shape:
            found = list(self.tensors[self.old[target]].shape)
            raise self.error(f"{target} becomes {list(shape)}, but its value from before the op has the shape {found}")
        if math.prod(shape) >= LARGEST:
            raise self.error(f"{target} has the impossible shape {list(shape)}")
        self.add(Tensor(target, dtype, shape), storage)
        return cast(value.expr, dtype)

    def add(self, t: Tensor, storage: Kind) -> None:
        declared = self.declared.get(t.name)
        nodes = (None,) * len(t.shape) if declared is None or declared.dims is None else declared.dims
        labels = [n.text if isinstance(n, Name) else None for n in nodes]
        self.tensors[t.name] = t
        self.dims[t.name] = tuple(Dim(n, label) for n, label in zip(t.shape, labels, strict=True))
        self.storage[t.name] = storage

    # --- sizes ---

    def bind_dims(self, t: TensorDeclaration, shape: tuple[int, ...]) -> None:
        """Bind or check the header's sizes of one tensor by the shape that was found."""
        if t.dims is None:
            return
        if len(t.dims) != len(shape):
            wanted = counted(len(t.dims), "dimension")
            raise self.error(f"{t.name} should have {wanted}, found {len(shape)}: {list(shape)}")
        for d, (node, found) in enumerate(zip(t.dims, shape, strict=True)):
            place = f"dimension {d} of {t.name}"
            if isinstance(node, Name):
                self.sizes.bind(node.text, found, place)
            else:
                self.open_dims.append((node, found, place))
        self.check_dims()

    def check_dims(self) -> None:
        """Check the declared sizes that are expressions, as far as they can be computed."""
        still_open = []
        for node, found, place in self.open_dims:
            expected = self.sizes.integer(node)
            if expected is None:
                still_open.append((node, found, place))
            elif expected != found:
                raise self.error(f"{place} should be {_equal(node, expected)}, found {found}")
        self.open_dims = still_open

    def solve_equations(self) -> None:
        """Compute every size equation whose names are known."""
        progress = True
        while progress:
            progress = False
            for e in list(self.equations):
                value = self.sizes.integer(e.value)
                if value is None:
                    continue
                name = e.target.text
                if value < 0:
                    raise self.error(f"the size {name} = {syntax.node_text(e.value)} is negative: {value}")
                self.sizes.bind(name, value, f"the equation {name} = {syntax.node_text(e.value)}")
                self.equations.remove(e)
                progress = True
        self.check_dims()

    def declared_dims(self, target: str) -> tuple[int | None, ...] | None:
        """The sizes that the header gives a tensor, each None while it is not known; None if it gives no shape."""
        declared = self.declared.get(target)
        if declared is None or declared.dims is None:
            return None
        found = tuple(self.sizes.integer(d) for d in declared.dims)
        for d, (size, node) in enumerate(zip(found, declared.dims, strict=True)):
            if size is not None and size < 0:
                raise self.error(f"dimension {d} of {target} is negative: {_equal(node, size)}")
        return found


def _equal(node: Node, value: int) -> str:
    return str(value) if isinstance(node, Literal) else f"{syntax.node_text(node)} = {value}"
