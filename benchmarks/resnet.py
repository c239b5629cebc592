"""ResNets as ONNX models with random weights: networks to time that no file has to be at hand for.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2015; batch normalisation is folded away, and
each residual branch ends in small weights, so that activations stay in range through all layers.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
"""Blocks per stage: of two 3×3 convolutions in ResNet-18, of 1×1, 3×3 and 1×1 in ResNet-50."""


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        name = f"weight_{len(self.weights)}"
        fan_in = int(np.prod(shape[1:])) or 1
        values = self._rng.standard_normal(shape, np.float32) * np.float32(scale * (2 / fan_in) ** 0.5)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, scale: float = 1.0) -> str:
        given, made = channels
        pads = [kernel // 2] * 4
        weights = (self.weight(made, given, kernel, kernel, scale=scale), self.weight(made, scale=0.01))
        return self.node("Conv", x, *weights, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def block(self, x: str, given: int, width: int, stride: int, bottleneck: bool) -> str:
        made = width * 4 if bottleneck else width
        if bottleneck:
            y = self.node("Relu", self.conv(x, (given, width), 1))
            y = self.node("Relu", self.conv(y, (width, width), 3, stride))
            y = self.conv(y, (width, made), 1, scale=0.2)
        else:
            y = self.node("Relu", self.conv(x, (given, width), 3, stride))
            y = self.conv(y, (width, made), 3, scale=0.2)
        shortcut = x if given == made and stride == 1 else self.conv(x, (given, made), 1, stride, scale=0.7)
        return self.node("Relu", self.node("Add", y, shortcut))


def resnet(depth: int) -> onnx.ModelProto:
    """ResNet-18 or -50 in opset 13: ``input`` f32 [N, 3, 224, 224] to ``logits`` f32 [N, 1000]."""
    g, bottleneck, channels = _Graph(), depth == 50, 64
    x = g.node("Relu", g.conv("input", (3, 64), 7, stride=2))
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, blocks in enumerate(STAGES[depth]):
        width = 64 << stage
        for number in range(blocks):
            x = g.block(x, channels, width, 2 if stage and not number else 1, bottleneck)
            channels = width * 4 if bottleneck else width
    x = g.node("Flatten", g.node("GlobalAveragePool", x))
    g.nodes.append(helper.make_node("Gemm", [x, g.weight(1000, channels), g.weight(1000)], ["logits"], transB=1))
    graph = helper.make_graph(
        g.nodes,
        f"resnet{depth}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model
