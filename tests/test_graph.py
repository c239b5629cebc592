"""The ONNX importer and the rewrite rules, on graphs written as ONNX text; hardly any needs a device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, model, random
from onnx import helper, numpy_helper

from tilewright.dsl.dtypes import DType
from tilewright.errors import ModelError, UnsupportedOperatorError
from tilewright.graph import host, passes
from tilewright.graph.ir import Graph, verify
from tilewright.graph.onnx_import import import_model
from tilewright.graph.rules import Rule, apply, dead_code_removed
from tilewright.graph.session import InferenceSession
from tilewright.graph.steps import steps_of
from tilewright.runtime import Device


def evaluate(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The graph's outputs by onnxruntime, without its optimisations."""
    open_outputs = [helper.make_empty_tensor_value_info(v.name) for v in graph.outputs]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    constants = [numpy_helper.from_array(np.array(a), name) for name, a in graph.constants.items()]
    proto = helper.make_graph([host.node_proto(n) for n in graph.nodes], "g", inputs, open_outputs, constants)
    whole = helper.make_model(proto, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=8)
    results = by_onnxruntime(whole, feeds)
    return {v.name: r for v, r in zip(graph.outputs, results, strict=True)}


def check_rule(rule: Rule, graph: Graph, fired: int, counts: Mapping[str, int], **feeds: np.ndarray) -> Graph:
    """The rule fires so often, leaves these operators, keeps the numbers, and has nothing left to do."""
    graph = passes.fold_constants(graph)
    before = evaluate(graph, feeds)
    after, count = apply(rule, graph)
    assert count == fired
    after = dead_code_removed(after)
    verify(after)
    assert dict(after.op_counts) == dict(counts)
    for name, value in evaluate(after, feeds).items():
        np.testing.assert_allclose(value, before[name], rtol=1e-5, atol=1e-5)
    same, again = apply(rule, after)
    if not again:
        assert same is after
    return after


# --- the importer -----------------------------------------------------------------------------------------------------

RELU = "g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }"


def test_import_reads_paths_bytes_and_protos(tmp_path: Path) -> None:
    proto = model(RELU)
    path = tmp_path / "relu.onnx"
    onnx.save(proto, path)
    for source in (proto, path, str(path), path.read_bytes()):
        graph = import_model(source)
        verify(graph)
        assert [(v.name, v.dtype, v.shape) for v in graph.inputs] == [("x", DType.F32, ("N", 3))]
        assert [n.op for n in graph.nodes] == ["Relu"]
        assert graph.opset == 17


def test_initializers_listed_as_inputs_are_not_fed() -> None:
    proto = model("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", w=random(2))
    assert [v.name for v in import_model(proto).inputs] == ["x"]


def test_outputs_may_leave_their_sizes_open() -> None:
    proto = model(RELU)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    graph = import_model(proto)
    assert graph.outputs[0].shape is None
    assert passes.specialise(graph, {"x": (2, 3)}).outputs[0].shape == (2, 3)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx does not exist; give the path"):
        import_model(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match=r"is a folder; give the path"):
        import_model(tmp_path)
    with pytest.raises(ModelError, match=r"a model is a path, bytes or an onnx.ModelProto, not int"):
        import_model(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"not a model at all\n" * 10, b"\x08\x08\x12\x07pytorch\x1a\x05"])
def test_files_that_are_no_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"odd\.onnx is not (a readable|a valid) ONNX"):
        import_model(path)


def test_truncated_file(tmp_path: Path) -> None:
    proto = model("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", w=random(64, 64))
    path = tmp_path / "short.onnx"
    path.write_bytes(proto.SerializeToString()[:-300])
    with pytest.raises(ModelError, match=r"truncated, or something else than ONNX"):
        import_model(path)


def test_incomplete_initializer() -> None:
    proto = model("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", w=random(4, 4))
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-8]
    with pytest.raises(ModelError, match=r"not a valid ONNX model|incomplete"):
        import_model(proto)


def test_checker_complaints_are_one_sentence() -> None:
    proto = model(RELU)
    proto.graph.node[0].input[0] = "nobody"
    with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*nobody") as caught:
        import_model(proto)
    assert "\n" not in str(caught.value)


def test_element_types_that_the_language_lacks() -> None:
    proto = model("g (float[N] x) => (float[N] y) { b = Cast <to = 8> (x)\n y = Cast <to = 1> (b) }")
    with pytest.raises(ModelError, match=r"the value 'b' has element type STRING, which is not supported"):
        passes.specialise(import_model(proto), {"x": (2,)})
    proto = model(RELU)
    proto.graph.initializer.add(name="s", data_type=8, dims=[1], string_data=[b"text"])
    with pytest.raises(ModelError, match=r"the constant 's' of .* has element type STRING"):
        import_model(proto)
    proto = model("g (complex64[N] x) => (complex64[N] y) { y = Identity(x) }")
    with pytest.raises(ModelError, match=r"'x' of .* has element type COMPLEX64"):
        import_model(proto)


def test_defaults_of_operators_that_are_expanded(device: Device) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    proto = model("g (float[2,3,4,5] x) => (float[2,3,4,5] y) { y = MeanVarianceNormalization (x) }")
    expected = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    found = InferenceSession(proto, device).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_two_versions_of_the_same_operators() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import.append(helper.make_opsetid("", 9))
    with pytest.raises(ModelError, match="imports the operators of domain '' in version 17 and again in version 9"):
        import_model(proto)


def test_opset_from_the_future() -> None:
    proto = model(RELU)
    proto.opset_import[0].version = 1000
    with pytest.raises(ModelError, match=r"1000|not a valid"):
        import_model(proto)


def test_all_unsupported_nodes_are_listed() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 4] y) {
            a = Unique(x)
            b = com.example.Fancy(x)
            y = Relu(x)
        }"""
    )
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    proto.graph.node[0].name = "first"
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_model(proto)
    message = str(caught.value)
    assert "2 nodes that cannot be run" in message
    assert "'first': Unique (opset 17): the operator is not supported" in message
    assert "the node that writes 'b': com.example::Fancy (opset 17)" in message
    assert "Relu" not in message


def test_unsupported_attributes_and_data_dependent_shapes_say_why() -> None:
    proto = model(
        """g (float[2, 3, 4, 4] x) => (float[A, B] y, float[2, 3, 6, 6] z) {
            r = ReduceMax <axes = [0, 2, 3], keepdims = 0> (x)
            s = Cast <to = 7> (r)
            y = Reshape(x, s)
            z = Pad <mode = "mirror"> (x, p)
        }""",
        p=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    )
    with pytest.raises(UnsupportedOperatorError, match=r"(?s)'s' must be constant.*mode 'mirror'"):
        import_model(proto)


def test_external_data(tmp_path: Path) -> None:
    proto = model("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", w=random(64, 64))
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.testing.assert_array_equal(import_model(path).constants["w"], random(64, 64))
    with pytest.raises(ModelError, match=r"lies in another file; open the model by its path"):
        import_model(path.read_bytes())
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"cannot be read"):
        import_model(path)


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret.bin").write_bytes(random(64, 64).tobytes())
    proto = model("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }")
    tensor = proto.graph.initializer.add(name="w", data_type=1, dims=[64, 64], data_location=1)
    tensor.external_data.add(key="location", value="../secret.bin")
    path = tmp_path / "inner" / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"cannot be read"):
        import_model(path)


def test_operators_defined_in_terms_of_others_are_expanded() -> None:
    graph = import_model(model("g (float[2, 3] x) => (float[2, 3] y) { y = ThresholdedRelu(x) }"))
    assert "ThresholdedRelu" in graph.op_counts or len(graph.nodes) > 1


# --- constants --------------------------------------------------------------------------------------------------------


def test_constants_fold_through_chains() -> None:
    graph = import_model(
        model(
            """g (float[2, 6] x) => (float[3, 4] y) {
                a = Constant <value = int64[1] {3}> ()
                b = Constant <value = int64[1] {4}> ()
                shape = Concat <axis = 0> (a, b)
                y = Reshape(x, shape)
            }"""
        )
    )
    folded = passes.fold_constants(graph)
    verify(folded)
    assert dict(folded.op_counts) == {"Reshape": 1}
    np.testing.assert_array_equal(folded.constants["shape"], [3, 4])
    assert passes.fold_constants(folded) is folded


SHAPE_ARITHMETIC = """g (float[N, C, 4, 4] x) => (float[N, M] y) {
    shape = Shape(x)
    zero = Constant <value = int64 {0}> ()
    n = Gather <axis = 0> (shape, zero)
    axes = Constant <value = int64[1] {0}> ()
    batch = Unsqueeze(n, axes)
    rest = Constant <value = int64[1] {-1}> ()
    target = Concat <axis = 0> (batch, rest)
    y = Reshape(x, target)
}"""


@pytest.mark.parametrize("batch", [1, 3])
def test_shape_arithmetic_folds_once_sizes_are_known(batch: int) -> None:
    graph = passes.simplify(import_model(model(SHAPE_ARITHMETIC)))
    assert "Shape" in graph.op_counts
    concrete = passes.specialise(graph, {"x": (batch, 2, 4, 4)})
    verify(concrete)
    assert dict(concrete.op_counts) == {"Reshape": 1}
    assert concrete.outputs[0].shape == (batch, 32)


def test_sizes_that_contradict_the_network() -> None:
    graph = import_model(model("g (float[N, M] x) => (float[N, 5] y) { y = MatMul(x, w) }", w=random(4, 5)))
    with pytest.raises(ModelError, match=r"\(MatMul\) does not fit its inputs"):
        passes.specialise(graph, {"x": (2, 3)})


@pytest.mark.parametrize(
    "body",
    [
        "y = Resize(x, , s)",
        "y = MaxPool <kernel_shape = [9223372036854775807, 2]> (x)",
    ],
)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1])
def test_sizes_that_cannot_be(body: str, scale: float) -> None:
    text = f"g (float[1, 1, 4, 4] x) => (float[a, b, c, d] y) {{ {body} }}"
    graph = import_model(model(text, s=np.array([1, 1, scale, 2], np.float32)))
    with pytest.raises(ModelError, match=r"node 'y' \((Resize|MaxPool)\) would write 'y' with the sizes \(1, 1, -"):
        passes.specialise(graph, {"x": (1, 1, 4, 4)})


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            "s = Constant <value_ints = [4, 5]> () y = Reshape(x, s)",
            r"6 elements .* the sizes \(4, 5\)",
        ),
        ("y = Transpose <perm = [0, 1, 2]> (x)", "attribute perm|out of range"),
        ("y, h, c = LSTM <hidden_size = 1, activations = ['Relu', 'Foo', 'Elu']> (z, w, r)", "no activation 'Foo'"),
        ("y, h, c = LSTM <hidden_size = 1, activations = ['Relu', 'Tanh']> (z, w, r)", "2 activations are too few"),
        ("y, h, c = LSTM <hidden_size = 1, direction = 'bidirectional'> (z, w, r)", "1 directions do not fit"),
        ("y, h, c = LSTM (z, w, q)", "its input [12] has the sizes"),
        ("y, h, c = LSTM <hidden_size = 2> (z, w, r)", "its hidden_size is 2, its weights are for 1"),
        ("y, h, c = LSTM <hidden_size = -1> (z, w, r)", "its hidden_size is -1, its weights are for 1"),
    ],
)
def test_nodes_that_do_not_fit_their_inputs(body: str, complaint: str) -> None:
    text = f"g (float[2, 3] x, float[2, 1, 3] z) => (float y) {{ {body} }}".replace("'", '"')
    weights = {"w": random(1, 4, 3), "r": random(1, 4, 1), "q": random(1, 4, 2)}
    proto = model(text, **weights)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match=rf"node 'y' \(\w+\) does not fit its inputs: .*({complaint})"):
        steps_of(passes.specialise(passes.simplify(import_model(proto)), {"x": (2, 3), "z": (2, 1, 3)}))


def test_calls_that_do_not_fit_their_function() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[2] x) => (float[2] y) { y = own.f(x, x) }
        <domain: "own", opset_import: ["" : 17]> f (a) => (b) { b = Relu(a) }""")
    with pytest.raises(ModelError, match="calls one of its functions in a wrong way"):
        import_model(proto)


def test_scales_of_zero() -> None:
    text = "g (float[1, 1, 4, 4] x) => (float[a, b, c, d] y) { y = Resize(x, , s) }"
    graph = import_model(model(text, s=np.array([1, 1, 0, 2], np.float32)))
    with pytest.raises(ModelError, match=r"\(Resize\) does not fit its inputs: dimension 2 would be scaled by 0"):
        steps_of(passes.specialise(graph, {"x": (1, 1, 4, 4)}))


# --- rules ------------------------------------------------------------------------------------------------------------


def test_identities_vanish() -> None:
    graph = import_model(
        model(
            """g (float[2, 3] x) => (float[2, 3] y) {
                a = Identity(x)
                b = Relu(a)
                c = Dropout(b)
                y = Identity(c)
            }"""
        )
    )
    after = check_rule(passes.IDENTITIES, graph, 3, {"Relu": 1}, x=random(2, 3))
    assert after.nodes[0].outputs == ("y",)


def test_identity_between_input_and_output_stays() -> None:
    graph = import_model(
        model("g (float[2] x) => (float[2] y, float[2] z) { a = Identity(x)\n y = Identity(a)\n z = Identity(a) }")
    )
    check_rule(passes.IDENTITIES, graph, 1, {"Identity": 2}, x=random(2))


def test_nodes_without_effect_vanish_once_sizes_are_known() -> None:
    graph = import_model(
        model(
            """g (float[N, 3, 1, 1] x) => (float[N, 3, 1, 1] y) {
                s = Constant <value = int64[4] {0, 3, 1, 1}> ()
                a = Reshape(x, s)
                b = Transpose <perm = [0, 1, 3, 2]> (a)
                c = Cast <to = 1> (b)
                y = Relu(c)
            }"""
        )
    )
    assert dict(passes.specialise(graph, {"x": (2, 3, 1, 1)}).op_counts) == {"Relu": 1}


def batch_normalization(channels: int) -> dict[str, np.ndarray]:
    values = {name: random(channels, seed=n) for n, name in enumerate(("scale", "bias", "mean", "var"))}
    return values | {"var": np.abs(values["var"]) + 0.1}


def test_batch_normalization_becomes_scale_and_shift() -> None:
    graph = import_model(
        model(
            """g (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {
                y = BatchNormalization <epsilon = 0.01> (x, scale, bias, mean, var)
            }""",
            **batch_normalization(4),
        )
    )
    check_rule(passes.BATCH_NORMALIZATION, graph, 1, {"Mul": 1, "Add": 1}, x=random(2, 4, 5, 5))


def test_batch_normalization_with_computed_parameters_stays() -> None:
    values = batch_normalization(4)
    text = """g (float[N, 4, 5, 5] x, float[4] scale) => (float[N, 4, 5, 5] y) {
        y = BatchNormalization(x, scale, bias, mean, var)
    }"""
    scale = values.pop("scale")
    check_rule(passes.BATCH_NORMALIZATION, import_model(model(text, **values)), 0, {"BatchNormalization": 1},
               x=random(2, 4, 5, 5), scale=scale)  # fmt: skip


CONV_BN = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    a = Conv(x, w, b)
    c = BatchNormalization(a, scale, bias, mean, var)
    y = Relu(c)
}"""


def test_batch_normalization_folds_into_a_convolution() -> None:
    graph = import_model(model(CONV_BN, w=random(4, 3, 3, 3), b=random(4, seed=9), **batch_normalization(4)))
    simple = passes.simplify(graph)
    verify(simple)
    assert dict(simple.op_counts) == {"Conv": 1, "Relu": 1}
    x = {"x": random(2, 3, 8, 8)}
    np.testing.assert_allclose(evaluate(simple, x)["y"], evaluate(graph, x)["y"], rtol=1e-4, atol=1e-4)
    assert passes.simplify(simple) is simple
    assert len(simple.nodes[0].sources) == 2


def test_batch_normalization_stays_out_of_a_convolution_that_others_read() -> None:
    text = CONV_BN.replace("y = Relu(c)", "y = Add(a, c)")
    graph = import_model(model(text, w=random(4, 3, 3, 3), b=random(4, seed=9), **batch_normalization(4)))
    simple = passes.simplify(graph)
    assert dict(simple.op_counts) == {"Conv": 1, "Mul": 1, "Add": 2}


@pytest.mark.parametrize("shape", [(1,), (4, 1, 1), (1, 4, 1, 1), ()])
def test_constant_factor_and_summand_fold_into_a_convolution(shape: tuple[int, ...]) -> None:
    constant = np.asarray(random(*shape, seed=5), np.float32)
    text = "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { a = Conv <group = 4> (x, w)\n y = OP(k, a) }"
    for op, rule in (("Mul", passes.SCALE), ("Add", passes.BIAS)):
        graph = import_model(model(text.replace("OP", op), w=random(4, 1, 1, 1), k=constant))
        check_rule(rule, graph, 1, {"Conv": 1}, x=random(2, 4, 6, 6))


@pytest.mark.parametrize("shape", [(6, 1), (6,), (2, 1, 1, 1), (1, 1, 4, 1, 1)])
def test_constants_that_vary_elsewhere_stay_out_of_a_convolution(shape: tuple[int, ...]) -> None:
    text = "g (float[2, 4, 6, 6] x) => (float[A, B, C, D] y) { a = Conv(x, w)\n y = Add(a, k) }"
    if len(shape) == 5:
        text = text.replace("D] y", "D, E] y")
    graph = import_model(model(text, w=random(4, 4, 1, 1), k=random(*shape)))
    check_rule(passes.BIAS, graph, 0, {"Conv": 1, "Add": 1}, x=random(2, 4, 6, 6))


PADS = np.array([0, 0, 1, 2, 0, 0, 3, 0])


def padded(op: str, constant: float | None = None, pads: np.ndarray = PADS) -> Graph:
    """Pad, then `op`, both over 8x8 images of 2 channels."""
    given = {} if constant is None else {"v": np.float32(constant)}
    third = ", v" if given else ""
    text = f"g (float[2, 2, 8, 8] x) => (float[A, B, C, D] y) {{ a = Pad(x, p{third})\n y = {op} }}"
    weights = {"w": random(4, 2, 3, 3)} if "(a, w)" in op else {}
    return import_model(model(text, p=pads, **given, **weights))


@pytest.mark.parametrize(
    ("op", "value"),
    [
        ("Conv(a, w)", None),
        ("Conv <pads = [1, 1, 0, 2], strides = [2, 2]> (a, w)", 0.0),
        ('Conv <auto_pad = "VALID"> (a, w)', 0.0),
        ("AveragePool <kernel_shape = [4, 4]> (a)", 0.0),
        ("AveragePool <kernel_shape = [5, 5], pads = [1, 1, 1, 1], count_include_pad = 1> (a)", None),
        ("MaxPool <kernel_shape = [4, 4]> (a)", -np.inf),
    ],
)
def test_pads_move_into_windows(op: str, value: float | None) -> None:
    name = re.split(r"\W", op, maxsplit=1)[0]
    check_rule(passes.PADS, padded(op, value), 1, {name: 1}, x=random(2, 2, 8, 8))


@pytest.mark.parametrize(
    ("op", "value", "pads"),
    [
        ("Conv(a, w)", 1.0, PADS),  # not the value that a convolution's own pads have
        ("Conv(a, w)", 0.0, np.array([1, 0, 1, 0, 0, 0, 0, 0])),  # pads images
        ("Conv(a, w)", 0.0, np.array([0, 0, -1, 0, 0, 0, 0, 0])),  # crops
        ('Conv <auto_pad = "SAME_UPPER"> (a, w)', 0.0, PADS),  # its own pads depend on the sizes
        ("MaxPool <kernel_shape = [4, 4]> (a)", 0.0, PADS),  # zero is larger than a negative element
        ("AveragePool <kernel_shape = [4, 4], pads = [1, 1, 1, 1]> (a)", 0.0, PADS),  # own pads do not count, these do
        ("AveragePool <kernel_shape = [4, 4], ceil_mode = 1, strides = [3, 3]> (a)", 0.0, PADS),
    ],
)
def test_pads_stay_where_they_mean_something_else(op: str, value: float, pads: np.ndarray) -> None:
    name = re.split(r"\W", op, maxsplit=1)[0]
    check_rule(passes.PADS, padded(op, value, pads), 0, {"Pad": 1, name: 1}, x=random(2, 2, 8, 8))


def test_dead_code_and_unused_constants_are_dropped() -> None:
    graph = import_model(
        model("g (float[2] x) => (float[2] y) { a = Exp(x)\n b = Add(a, k)\n y = Relu(x) }", k=random(2))
    )
    after = dead_code_removed(graph)
    assert dict(after.op_counts) == {"Relu": 1}
    assert not after.constants
    assert dead_code_removed(after) is after


def test_verify_finds_disorder() -> None:
    graph = import_model(model("g (float[2] x) => (float[2] y) { a = Exp(x)\n y = Relu(a) }"))
    with pytest.raises(ValueError, match=r"before anything writes it"):
        verify(graph.replace_nodes(graph.nodes[::-1]))
    with pytest.raises(ValueError, match=r"exists already"):
        verify(graph.replace_nodes(graph.nodes + graph.nodes[:1]))
    with pytest.raises(ValueError, match=r"nothing writes its output"):
        verify(graph.replace_nodes(graph.nodes[:1]))
