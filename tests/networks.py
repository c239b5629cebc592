"""Helpers for tests of networks: models from ONNX text, onnxruntime's answers, and networks run by NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from interpret import interpret
from numpy.lib.stride_tricks import as_strided
from onnx import numpy_helper
from targets import CPU

from tilewright.dsl.program import Tensor
from tilewright.graph import passes
from tilewright.graph.calls import Network, Role
from tilewright.graph.fusion import fuse
from tilewright.graph.layout import lay_out
from tilewright.graph.onnx_import import import_model, steering_inputs
from tilewright.graph.steps import steps_of


def model(text: str, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text of its graph; `constants` are added as initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    return proto


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers, f32, the same for the same shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def by_onnxruntime(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs by onnxruntime, without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    return list(onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, dict(feeds)))


def planned(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Network:
    """The network as it would be planned for these feeds."""
    graph = passes.simplify(import_model(proto))
    known = {name: feeds[name] for name in steering_inputs(graph)}
    shapes = {v.name: feeds[v.name].shape for v in graph.inputs}
    return lay_out(fuse(steps_of(passes.specialise(graph, shapes, known))), CPU)


def by_numpy(network: Network, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a planned network: its calls interpreted one by one on memory as it was laid out.

    Memory that nothing has written holds NaN (or a large number), so that a missing write shows.
    """
    memory: dict[str, np.ndarray] = {}
    for spec in network.buffers.values():
        memory[spec.name] = np.full(spec.size, np.nan if spec.dtype.is_float else 77, spec.dtype.numpy)
        given = feeds.get(spec.name) if spec.role is Role.INPUT else spec.content
        if given is not None:
            memory[spec.name][:] = np.ascontiguousarray(given).reshape(-1)
    for call in network.calls:
        arrays = {t.name: _seen(t, memory[call.buffers[t.name]]).copy() for t in call.program.inputs}
        written = interpret(call.program, arrays)
        for t in call.program.outputs:
            _seen(t, memory[call.buffers[t.name]])[...] = written[t.name]
    return {s.name: memory[s.name].reshape(s.shape) for s in network.buffers.values() if s.role is Role.OUTPUT}


def _seen(t: Tensor, memory: np.ndarray) -> np.ndarray:
    if t.size == 0:
        return np.empty(t.shape, memory.dtype)
    assert t.span <= memory.size, f"{t} leaves its buffer of {memory.size} elements"
    return as_strided(memory[t.offset :], t.shape, [s * memory.itemsize for s in t.strides])


def copies(network: Network) -> int:
    """How many calls only move elements."""
    return sum(call.ops == ("Copy",) for call in network.calls)
