"""A network beside onnxruntime where nearly equal numbers decide: ranks, boxes that stay, thresholds, rounding.

A node that makes integers or truth values of floats jumps: two scores that differ by a rounding error may come in
either order, and all that follows is another. Two right runs of such a network can differ in any element. What can be
shown is that both are right up to their decisions, and this is compared here:

- each decision, made by onnxruntime of our numbers, must be the one that is made here, exactly;
- all that decisions read, and the network's outputs, must be what onnxruntime computes of the same inputs and of the
  decisions that were made here.

Together they hold every node to onnxruntime's definition; only that the runs decide alike is not asked. Of bodies of
control flow that decide, the whole node counts as one decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tilewright.compare import (
    Difference,
    by_onnxruntime,
    opened,
    peer,
    types_by_onnxruntime,
    with_outputs,
)
from tilewright.graph.session import InferenceSession

STEPS = frozenset({"Ceil", "Floor", "Round", "Sign"})
"""Operators that jump although they give floats."""
OF_SIZES = frozenset({"Shape", "Size"})
"""Operators that give integers but do not look at numbers."""

_PREFIX = "decided from our numbers: "


@dataclass(frozen=True)
class DecisionComparison:
    """What was compared."""

    model: str
    device: str
    peer: str
    outputs: tuple[Difference, ...]
    """The network's outputs, each side deciding for itself; these may differ where numbers nearly tie."""
    decisions: tuple[Difference, ...]
    """Results of the nodes that decide, and onnxruntime's of the same numbers, in the order of the file."""
    values: tuple[Difference, ...]
    """What decisions read, then the network's outputs, and onnxruntime's after the same decisions."""
    is_undisturbed: bool
    """Whether the outputs stayed the same bit by bit when the values between were made outputs too."""

    @property
    def first(self) -> Difference | None:
        """The first value that is wrong, None if the networks agree up to near ties."""
        return next((d for d in (*self.decisions, *self.values) if d.reason), None)


def compare_decisions(
    model: Path,
    inputs: Sequence[str],
    *,
    device: str | None = None,
    precision: str = "fp32",
    batch: int = 1,
    tolerance: float | None = None,
) -> DecisionComparison:
    """Run a network here and by onnxruntime on equal inputs, given as for ``--input``, each decision made once.

    Raises InputError without onnxruntime, ModelError if that cannot run the file, and what sessions raise.
    """
    beside = opened(model, inputs, device=device, precision=precision, batch=batch, tolerance=tolerance)
    session, feeds, proto, writers = beside.session, beside.feeds, beside.proto, beside.writers
    nodes = tuple(deciding(proto))
    own = [v.name for v in proto.graph.output]
    decided = [o for n in nodes for o in n.output if o]
    read = list(dict.fromkeys(name for n in nodes for name in _read(n) if name in writers and name not in decided))
    shown = list(dict.fromkeys([*read, *decided, *own]))

    theirs = by_onnxruntime(proto, shown, feeds)
    alone = dict(zip(own, session.run(own, feeds), strict=True))
    part = InferenceSession(with_outputs(proto, shown, theirs), session.device, precision=precision)
    ours = dict(zip(shown, part.run(shown, feeds), strict=True))

    known = {**feeds, **ours}
    again = by_onnxruntime(_only(proto, nodes, known), [_PREFIX + o for o in decided], _read_by(nodes, known))
    wanted = [name for name in dict.fromkeys([*read, *own]) if name not in decided]
    given = {**feeds, **{name: ours[name] for name in decided}}
    forced = by_onnxruntime(_without(proto, nodes, ours), wanted, given)

    return DecisionComparison(
        str(model),
        session.device.name,
        peer(),
        beside.compared(own, alone, theirs),
        beside.compared(decided, ours, {name: again[_PREFIX + name] for name in decided}),
        beside.compared(wanted, ours, forced),
        all(np.array_equal(np.asarray(alone[n]), np.asarray(ours[n]), equal_nan=_is_float(ours[n])) for n in own),
    )


def deciding(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of the network itself that make integers or truth values of floating-point numbers, or round them."""
    writers = {o: n for n in proto.graph.node for o in n.output if o}
    types = types_by_onnxruntime(proto, list(writers))
    for value in proto.graph.input:
        types[value.name] = _written(value.type.tensor_type.elem_type)
    for tensor in proto.graph.initializer:
        types[tensor.name] = _written(tensor.data_type)
    for node in proto.graph.node:
        read = [types.get(name, "") for name in _read(node)]
        made = [types[name] for name in node.output if name]
        jumps = node.op_type in STEPS or any("int" in t or "bool" in t for t in made)
        tensors = all(t.startswith("tensor(") for t in (*read, *made))
        if jumps and tensors and any("float" in t or "double" in t for t in read) and node.op_type not in OF_SIZES:
            yield node


def _written(code: int) -> str:
    """A tensor's type as onnxruntime writes it, as far as floats and integers are told apart."""
    return f"tensor({onnx.TensorProto.DataType.Name(code).lower()})"


def _read(node: onnx.NodeProto) -> list[str]:
    """Names of the values that a node reads, those that its bodies take from around it among them."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            inside = {o for n in body.node for o in n.output} | {v.name for v in (*body.input, *body.initializer)}
            named = [name for n in body.node for name in _read(n)] + [v.name for v in body.output]
            names += [name for name in named if name not in inside]
    return list(dict.fromkeys(names))


def _only(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], known: dict[str, Any]) -> onnx.ModelProto:
    """The deciding nodes alone, their results renamed, because one may read what another one decides."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for part in ("node", "initializer", "input", "output", "value_info"):
        changed.graph.ClearField(part)
    for node in nodes:
        copy = changed.graph.node.add()
        copy.CopyFrom(node)
        copy.output[:] = [_PREFIX + o if o else o for o in node.output]
    names = {name for n in nodes for name in _read(n)}
    changed.graph.initializer.extend(t for t in proto.graph.initializer if t.name in names)
    changed.graph.input.extend(_declared(name, array) for name, array in _read_by(nodes, known).items())
    return changed


def _read_by(nodes: Sequence[onnx.NodeProto], known: dict[str, Any]) -> dict[str, Any]:
    """Those of the arrays that the nodes read."""
    names = dict.fromkeys(name for n in nodes for name in _read(n))
    return {name: known[name] for name in names if name in known}


def _without(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], known: dict[str, Any]) -> onnx.ModelProto:
    """The network with the results of these nodes as inputs."""
    gone = {id(n) for n in nodes}
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.graph.ClearField("node")
    changed.graph.ClearField("value_info")
    changed.graph.node.extend(n for n in proto.graph.node if id(n) not in gone)
    changed.graph.input.extend(_declared(o, known[o]) for n in nodes for o in n.output if o)
    return changed


def _declared(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _is_float(value: Any) -> bool:
    return np.asarray(value).dtype.kind == "f"


__all__ = ["DecisionComparison", "compare_decisions", "deciding"]
