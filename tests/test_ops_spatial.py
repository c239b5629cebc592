"""Operators on images against onnxruntime or ONNX's reference evaluator, on uneven sizes, on every device."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, random
from one_node import one_node
from onnx.reference import ReferenceEvaluator

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.graph.session import InferenceSession
from tilewright.ops import OPERATORS, Application, Operand
from tilewright.runtime import Device


def on_device(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], device: Device) -> list[np.ndarray]:
    """All outputs; nothing may have been left to the host."""
    session = InferenceSession(proto, device, store=False)
    assert not [row.op for row in session.profile(feeds) if row.family == "host"]
    return session.run(None, feeds)


def check(
    device: Device,
    op: str,
    inputs: Sequence[np.ndarray | None],
    opset: int = 22,
    constant: Collection[int] = (),
    types: Sequence[int] = (),
    by_reference: bool = False,
    **attributes: object,
) -> None:
    """Compare one node's outputs with those of onnxruntime, or of ONNX's reference evaluator."""
    outputs = len(types) or 1
    proto, feeds = one_node(op, inputs, constant, opset, outputs, types, **attributes)
    expected = ReferenceEvaluator(proto).run(None, dict(feeds)) if by_reference else by_onnxruntime(proto, feeds)
    for found, wanted in zip(on_device(proto, feeds, device), expected, strict=True):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def uniform(low: float, high: float, *shape: int) -> np.ndarray:
    """Numbers between two bounds, f32, the same for the same shape."""
    return np.random.default_rng(shape).uniform(low, high, shape).astype(np.float32)


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_samples(mode: str, padding: str, corners: int, device: Device) -> None:
    x, grid = random(2, 3, 5, 7), uniform(-2.5, 2.5, 2, 4, 3, 2)
    check(device, "GridSample", [x, grid], mode=mode, padding_mode=padding, align_corners=corners)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("padding", "corners"), [("zeros", 0), ("border", 1), ("reflection", 0), ("reflection", 1)])
def test_grid_samples_of_volumes(mode: str, padding: str, corners: int, device: Device) -> None:
    x, grid = random(1, 2, 4, 5, 3), uniform(-1.5, 1.5, 1, 2, 3, 4, 3)
    check(device, "GridSample", [x, grid], mode=mode, padding_mode=padding, align_corners=corners)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_samples_of_one_pixel(padding: str, device: Device) -> None:
    x, grid = random(2, 1, 1, 1), uniform(-1, 1, 2, 3, 1, 2)
    check(device, "GridSample", [x, grid], mode="linear", padding_mode=padding, align_corners=0)


def test_grid_samples_of_nothing(device: Device) -> None:
    proto, feeds = one_node("GridSample", [random(2, 3, 4, 5), np.zeros((2, 0, 3, 2), np.float32)], opset=22)
    assert on_device(proto, feeds, device)[0].shape == (2, 3, 0, 3)


def test_grid_samples_of_integers(device: Device) -> None:
    x, grid = np.arange(24, dtype=np.int32).reshape(1, 2, 3, 4), uniform(-1.2, 1.2, 1, 5, 2, 2)
    check(device, "GridSample", [x, grid], mode="nearest", by_reference=True)


def test_grid_samples_by_the_names_of_opset_16(device: Device) -> None:
    x, grid = random(2, 3, 5, 7), uniform(-1.2, 1.2, 2, 4, 3, 2)
    check(device, "GridSample", [x, grid], opset=16, mode="bicubic", padding_mode="border")


@pytest.mark.parametrize(
    ("size", "corners"), [((2, 3, 5, 4), 0), ((2, 3, 5, 4), 1), ((2, 3, 1, 4), 0), ((2, 1, 3, 5, 2), 1)]
)
def test_affine_grids(size: tuple[int, ...], corners: int, device: Device) -> None:
    theta = random(2, len(size) - 2, len(size) - 1)
    known = np.array(size, np.int64)
    check(device, "AffineGrid", [theta, known], constant=[1], align_corners=corners, by_reference=True)


# --- regions ----------------------------------------------------------------------------------------------------------

REGIONS = np.array([[0, 0, 6, 4], [1.3, 2.2, 9.7, 7.9], [-4, -3, 30, 25], [5, 5, 5.2, 5.1], [8, 1, 60, 3]], np.float32)
"""Within the image, partly outside on all sides, and smaller than a pixel."""


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2, 3])
@pytest.mark.parametrize("transform", ["half_pixel", "output_half_pixel"])
def test_roi_align(mode: str, ratio: int, transform: str, device: Device) -> None:
    inputs = [random(2, 3, 9, 11), REGIONS, np.array([0, 1, 1, 0, 1], np.int64)]
    check(
        device,
        "RoiAlign",
        inputs,
        mode=mode,
        sampling_ratio=ratio,
        coordinate_transformation_mode=transform,
        output_height=3,
        output_width=2,
        spatial_scale=0.8,
        by_reference=True,
    )


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_largest_in_regions(scale: float, device: Device) -> None:
    """One region lies outside the image altogether."""
    batches = np.array([[0], [1], [1], [0], [1], [0]], np.float32)
    regions = np.concatenate([REGIONS, np.array([[40, 40, 50, 50]], np.float32)])
    inputs = [random(2, 3, 9, 11), np.concatenate([batches, regions], 1)]
    check(device, "MaxRoiPool", inputs, opset=17, pooled_shape=[3, 2], spatial_scale=scale)


def test_roi_align_without_regions(device: Device) -> None:
    inputs = [random(2, 3, 9, 11), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)]
    proto, feeds = one_node("RoiAlign", inputs, opset=22, output_height=2, output_width=2)
    assert on_device(proto, feeds, device)[0].shape == (0, 3, 2, 2)


# --- deformable convolution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "parts", "given"), [(1, 1, ""), (2, 1, "b"), (1, 2, "bm"), (2, 4, "m")])
def test_deformable_convolutions(groups: int, parts: int, given: str, device: Device) -> None:
    x, w = random(2, 4, 7, 8), random(6, 4 // groups, 3, 2)
    inputs = [x, w, random(2, parts * 3 * 2 * 2, 4, 3), None, None]
    inputs[3] = random(6) if "b" in given else None
    inputs[4] = uniform(0, 1, 2, parts * 3 * 2, 4, 3) if "m" in given else None
    check(
        device,
        "DeformConv",
        inputs if "m" in given else inputs[:4] if "b" in given else inputs[:3],
        group=groups,
        offset_group=parts,
        strides=[2, 2],
        pads=[1, 0, 1, 0],
        dilations=[1, 2],
        by_reference=True,
    )


# --- pooling ----------------------------------------------------------------------------------------------------------

POOLS = {
    "plain": {"kernel_shape": [2, 3]},
    "padded": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 0], "strides": [2, 1]},
    "dilated": {"kernel_shape": [2, 2], "dilations": [2, 3], "strides": [1, 2]},
    "same": {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "last windows cut": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [0, 1, 1, 1]},
}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", POOLS)
def test_places_of_the_largest(name: str, order: int, device: Device) -> None:
    x = random(2, 3, 6, 9)
    check(device, "MaxPool", [x], opset=12, types=[1, 7], storage_order=order, **POOLS[name])


@pytest.mark.parametrize("shape", [(2, 2, 9), (1, 2, 4, 5, 6), (2, 1, 1)])
def test_places_of_the_largest_along_other_ranks(shape: tuple[int, ...], device: Device) -> None:
    rank = len(shape) - 2
    pads = [1] * 2 * rank
    check(device, "MaxPool", [random(*shape)], opset=12, types=[1, 7], kernel_shape=[2] * rank, pads=pads)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_places_of_the_largest_integers(dtype: type, device: Device) -> None:
    """Zeros of u8 and -128 of i8 are no larger than what lies outside, but inside; the first of equals counts."""
    x = np.random.default_rng(3).integers(0, 3, (1, 2, 5, 6)).astype(dtype)
    x[0, 0] = np.iinfo(dtype).min
    code = {np.uint8: 2, np.int8: 3}[dtype]
    check(device, "MaxPool", [x], opset=12, types=[code, 7], kernel_shape=[3, 3], pads=[1, 1, 1, 1])


@pytest.mark.parametrize("attributes", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("counted", [0, 1])
def test_means(attributes: dict[str, object], counted: int, device: Device) -> None:
    x = random(2, 3, 6, 9)
    check(device, "AveragePool", [x], opset=19, count_include_pad=counted, **attributes)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("name", ["plain", "padded", "dilated", "same"])
def test_norms(name: str, p: int, device: Device) -> None:
    check(device, "LpPool", [random(2, 3, 6, 9)], opset=18, p=p, **POOLS[name])


@pytest.mark.parametrize("op", ["GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 1, 1), (1, 2, 3, 4, 5)])
def test_whole_images(op: str, shape: tuple[int, ...], device: Device) -> None:
    check(device, op, [random(*shape)], opset=17)


# --- transposed convolution -------------------------------------------------------------------------------------------

TRANSPOSED = {
    "strides": {"strides": [2, 3], "pads": [1, 0, 1, 2]},
    "outputs that strides do not divide": {"strides": [3, 2], "pads": [0, 1, 1, 0], "output_padding": [1, 0]},
    "strides and dilations": {"strides": [2, 3], "dilations": [3, 2], "pads": [2, 1, 0, 3]},
    "one axis of both": {"strides": [1, 2], "dilations": [2, 2]},
    "output shape": {"strides": [2, 2], "output_shape": [8, 9]},
    "same": {"strides": [2, 3], "auto_pad": "SAME_UPPER"},
    "strides beyond the kernel": {"strides": [4, 5]},
}


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name: str, constant: bool, device: Device) -> None:
    inputs = [random(2, 4, 4, 5), random(4, 3, 3, 2), random(6)]
    check(device, "ConvTranspose", inputs, opset=17, constant=[1] * constant, group=2, **TRANSPOSED[name])


@pytest.mark.parametrize("shape", [(1, 2, 7), (2, 2, 3, 4, 2), (1, 2, 1, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_transposed_convolutions_of_other_ranks(shape: tuple[int, ...], dilation: int, device: Device) -> None:
    rank = len(shape) - 2
    inputs = [random(*shape), random(2, 3, *(2, 3, 2)[:rank])]
    check(device, "ConvTranspose", inputs, opset=17, strides=[2] * rank, dilations=[dilation] * rank)


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "output_padding"),
    [
        (4, 2, 1, 0),  # the phases fall into two halves that read one input further on
        (8, 4, 2, 0),  # halves of two phases each
        (8, 4, 2, 3),
        (6, 4, 2, 1),  # phases with different numbers of taps
        (12, 4, 6, 0),  # pads of more than a stride
        (5, 2, 2, 1),
        (2, 4, 0, 1),  # a stride larger than the kernel: phases without any tap
        (9, 3, 1, 0),  # pads that are no half of a stride
    ],
)
def test_phases_of_transposed_convolutions(
    kernel: int, stride: int, pad: int, output_padding: int, device: Device
) -> None:
    inputs = [random(2, 17, 5, 3), random(17, 19, kernel, kernel), random(19)]
    given = {"strides": [stride] * 2, "pads": [pad] * 4, "output_padding": [output_padding, 0]}
    check(device, "ConvTranspose", inputs, opset=17, constant=[1], **given)


@pytest.mark.parametrize("constant", [True, False])
def test_transposed_convolutions_of_doubles(constant: bool, device: Device) -> None:
    inputs = [random(1, 2, 3, 4).astype(np.float64), random(2, 3, 2, 2).astype(np.float64)]
    check(device, "ConvTranspose", inputs, opset=17, constant=[1] * constant, by_reference=True, strides=[2, 1])


@pytest.mark.parametrize(
    ("image", "block", "attributes"),
    [
        ((5, 6), (2, 3), {}),
        ((7, 8), (3, 2), {"strides": [2, 3], "pads": [1, 0, 1, 1]}),
        ((9, 9), (2, 3), {"dilations": [3, 2], "strides": [2, 1]}),
        ((4, 5, 3), (2, 2, 1), {"pads": [0, 1, 0, 0, 1, 0]}),
    ],
)
def test_sums_of_columns(
    image: tuple[int, ...], block: tuple[int, ...], attributes: dict[str, list[int]], device: Device
) -> None:
    ones = [1] * len(image)
    strides, dilations = attributes.get("strides", ones), attributes.get("dilations", ones)
    pads = attributes.get("pads", [0] * 2 * len(image))
    totals = [n + b + e for n, b, e in zip(image, pads, pads[len(image) :], strict=False)]
    windows = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(totals, block, strides, dilations, strict=True)]
    x = random(2, 3 * int(np.prod(block)), int(np.prod(windows)))
    sizes = [np.array(image, np.int64), np.array(block, np.int64)]
    check(device, "Col2Im", [x, *sizes], opset=18, constant=[1, 2], **attributes)


# --- resizing ---------------------------------------------------------------------------------------------------------

COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


def scaled(*scales: float) -> list[np.ndarray | None]:
    """The inputs of Resize behind the image."""
    return [None, np.array(scales, np.float32)]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolated_images(mode: str, coordinates: str, device: Device) -> None:
    inputs = [random(1, 2, 5, 7), *scaled(1, 1, 1.7, 0.6)]
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check(device, "Resize", inputs, opset=19, constant=[2], by_reference=True, **attributes)


def test_scales_are_multiplied_in_f32(device: Device) -> None:
    """5 times the f32 next to 1.4 is 7, as exporters and onnxruntime have it, and a little less in f64."""
    for size, scale in ((5, 1.4), (10, 0.7), (15, 2.6)):
        check(device, "Resize", [random(1, 1, size), *scaled(1, 1, scale)], constant=[2], mode="nearest")


@pytest.mark.parametrize("coordinates", [*COORDINATES[:4], "tf_half_pixel_for_nn"])
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_pixels(nearest: str, coordinates: str, device: Device) -> None:
    """Infinities stay where they are, whatever stands beside them; integers are moved as they are."""
    x = random(2, 1, 5, 7)
    x[0, 0, 2, 3] = np.inf
    opset = 11 if coordinates == "tf_half_pixel_for_nn" else 18
    attributes = {"nearest_mode": nearest, "coordinate_transformation_mode": coordinates}
    scales = (2.2, 3) if coordinates == "align_corners" else (2.4, 0.7)  # onnxruntime takes sizes for whole
    behind = [np.zeros(0, np.float32), *scaled(1, 1, *scales)[1:]]
    check(device, "Resize", [x, *behind], opset=opset, constant=[1, 2], **attributes)
    check(
        device,
        "Resize",
        [np.arange(70, dtype=np.uint8).reshape(x.shape), *behind],
        opset=opset,
        constant=[1, 2],
        **attributes,
    )


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("attribute", ["antialias", "exclude_outside"])
def test_interpolation_that_leaves_something_out(mode: str, attribute: str, device: Device) -> None:
    inputs = [random(1, 2, 8, 9), *scaled(1, 1, 0.4, 1.3)]
    check(device, "Resize", inputs, opset=19, constant=[2], by_reference=True, mode=mode, **{attribute: 1})


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_parts_of_images(mode: str, device: Device) -> None:
    """A region that leaves the image; what lies outside has a value of its own."""
    region = np.array([-0.2, 0.1, 0.8, 1.3], np.float32)
    inputs = [random(1, 2, 5, 7), region, None, np.array([4, 9], np.int64)]
    check(
        device,
        "Resize",
        inputs,
        opset=19,
        constant=[1, 3],
        by_reference=True,
        mode=mode,
        axes=[2, 3],
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=7.5,
    )


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_kept_ratios(policy: str, device: Device) -> None:
    inputs = [random(2, 2, 4, 6), None, None, np.array([7, 8], np.int64)]
    attributes = {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy}
    check(device, "Resize", inputs, opset=18, constant=[3], by_reference=True, **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("shape", [(1, 2, 6), (1, 2, 3, 4, 5), (1, 1, 1, 1)])
def test_resizing_along_other_ranks(mode: str, shape: tuple[int, ...], device: Device) -> None:
    scales = [1, 1, *(1.6, 2.0, 0.5)[: len(shape) - 2]]
    check(device, "Resize", [random(*shape), *scaled(*scales)], opset=19, constant=[2], by_reference=True, mode=mode)


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint8, "cubic"), (np.int8, "linear"), (np.int32, "linear")])
def test_resizing_integers(dtype: type, mode: str, device: Device) -> None:
    """They are rounded and saturated; cubic weights reach beyond an integer's range."""
    info = np.iinfo(dtype)
    x = np.random.default_rng(3).integers(info.min, info.max, (1, 2, 5, 7), dtype, endpoint=True)
    x[0, 0, 1:3] = info.max
    check(device, "Resize", [x, *scaled(1, 1, 1.7, 0.6)], opset=18, constant=[2], by_reference=True, mode=mode)


def test_long_integers_are_left_to_the_host() -> None:
    x = Operand(DType.I64, (1, 1, 4, 5))
    scales = Operand(DType.F32, (4,), np.array([1, 1, 1.5, 1], np.float32))
    app = Application("Resize", 19, {"mode": "linear"}, (x, None, scales), (Operand(DType.I64, (1, 1, 6, 5)),))
    with pytest.raises(UnsupportedError, match="interpolation between i64 is not supported"):
        OPERATORS["Resize"].build(app)


@pytest.mark.parametrize("opset", [9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_as_of_old(opset: int, mode: str, device: Device) -> None:
    inputs = [random(1, 2, 4, 5), np.array([1, 1, 2.5, 3], np.float32)]
    check(device, "Upsample" if opset == 9 else "Resize", inputs, opset=opset, constant=[1], mode=mode)


# --- sizes that contradict each other ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shapes", "out", "reason"),
    [
        ("ConvTranspose", [(1, 6, 7), (5, 2, 2)], (1, 2, 8), "do not divide into 1 groups"),
        ("ConvTranspose", [(1, 6, 7), (6, 2, 2), (5,)], (1, 2, 8), "its input 2 has the sizes"),
        ("DeformConv", [(1, 2, 5, 5), (2, 2, 2, 2), (1, 6, 4, 4)], (1, 2, 4, 4), "its input 2 has the sizes"),
    ],
)
def test_contradictions(op: str, shapes: list[tuple[int, ...]], out: tuple[int, ...], reason: str) -> None:
    inputs = tuple(Operand(DType.F32, shape) for shape in shapes)
    with pytest.raises(UnsupportedError, match=reason):
        OPERATORS[op].build(Application(op, 17, {}, inputs, (Operand(DType.F32, out),)))


REFUSED = [
    ("GridSample", {}, [(1, 2, 0, 5), (1, 2, 2, 2)], (1, 2, 2, 2), DType.F32, "nothing to read in an image without"),
    ("GridSample", {}, [(1, 2, 3, 5), (1, 2, 2, 2)], (1, 2, 2, 2), DType.I32, "interpolation between i32"),
    (
        "Resize",
        {"coordinate_transformation_mode": "tf_crop_and_resize"},
        [(1, 1, 4, 4), None, (4,)],
        (1, 1, 6, 6),
        DType.F32,
        "tf_crop_and_resize needs a region of 8 numbers",
    ),
    (
        "DeformConv",
        {"offset_group": 3},
        [(1, 2, 5, 5), (2, 2, 2, 2), (1, 24, 4, 4)],
        (1, 2, 4, 4),
        DType.F32,
        "2 channels do not divide into 3 offset groups and 1 groups",
    ),
]


@pytest.mark.parametrize(("op", "attributes", "shapes", "out", "dtype", "reason"), REFUSED)
def test_what_has_no_program(
    op: str,
    attributes: dict[str, object],
    shapes: list[tuple[int, ...] | None],
    out: tuple[int, ...],
    dtype: DType,
    reason: str,
) -> None:
    scales = np.array([1, 1, 1.5, 1.5], np.float32) if op == "Resize" else None
    inputs = tuple(None if s is None else Operand(dtype, s, scales if s == (4,) else None) for s in shapes)
    with pytest.raises(UnsupportedError, match=reason):
        OPERATORS[op].build(Application(op, 19, attributes, inputs, (Operand(dtype, out),)))


def test_modes_of_regions() -> None:
    assert OPERATORS["RoiAlign"].refusal({"mode": "median"}, 16, 1) == "mode 'median' is not supported"
    assert OPERATORS["RoiAlign"].refusal({"mode": "max"}, 16, 1) is None
