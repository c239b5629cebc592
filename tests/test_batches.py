"""The first steps of a network for parts of a batch: what may be cut, where it is, and that numbers stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from networks import by_numpy, by_onnxruntime, copies, model, random
from targets import CPU, GPU

from tilewright.graph import batches, passes, planning
from tilewright.graph.batches import Cut, best_cut, cut_in_parts, in_batches
from tilewright.graph.footprint import footprint
from tilewright.graph.fusion import fuse
from tilewright.graph.layout import lay_out
from tilewright.graph.onnx_import import import_model
from tilewright.graph.planned import packed_key
from tilewright.graph.session import InferenceSession
from tilewright.graph.steps import Steps, steps_of
from tilewright.runtime import Device

DENSE = """g (float[4,3,8,8] x) => (float[4,8,4,4] y) {
    s = Conv<pads=[1,1,1,1]>(x, w0)  t = Relu(s)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t)
    q = Mul(p, m)  r = Relu(q)  a = Conv(r, w1)
    c = Concat<axis=1>(p, a)  d = Relu(c)  e = Conv(d, w2)
    f = Concat<axis=1>(p, a, e)  i = Conv(f, w3)  j = Add(i, k)  o = Relu(j)  h = Conv(o, w4)  y = Add(h, o)
}"""
SIZES = {"w0": (6, 3, 3, 3), "m": (1, 6, 1, 1), "w1": (5, 6, 1, 1), "w2": (5, 11, 1, 1), "w3": (8, 16, 1, 1),
         "w4": (8, 8, 1, 1), "k": (1, 8, 1, 1)}  # fmt: skip


def dense() -> onnx.ModelProto:
    return model(DENSE, **{name: random(*shape) / 2 for name, shape in SIZES.items()})


def fused(proto: onnx.ModelProto) -> Steps:
    graph = passes.simplify(import_model(proto))
    return fuse(steps_of(passes.specialise(graph, {v.name: v.sizes for v in graph.inputs}, {})))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8])
def test_numbers_and_layout_stay(count: int) -> None:
    steps, x = fused(dense()), random(4, 3, 8, 8)
    whole = lay_out(steps, CPU)
    cut = lay_out(cut_in_parts(steps, Cut(count, 2)), CPU)
    np.testing.assert_allclose(by_numpy(cut, {"x": x})["y"], by_numpy(whole, {"x": x})["y"], atol=1e-5)
    assert len(cut.calls) >= len(whole.calls) + count - 2
    assert copies(cut) <= copies(whole) + 2 * count
    images = [t for c in cut.calls for t in c.program.outputs if len(t.shape) == 4 and t.shape[1] > 1]
    assert all(t.strides[1] == 1 for t in images if t.size < 4 * 8 * 16), "images have their channels last"


def test_whole_blocks_are_cut_without_copies() -> None:
    steps = fused(dense())
    assert copies(lay_out(cut_in_parts(steps, Cut(len(steps.steps), 4)), CPU)) == copies(lay_out(steps, CPU)) == 0


@pytest.mark.parametrize(
    ("text", "leading"),
    [
        ("s = Relu(x)  y = Softmax<axis=0>(s)", 0),
        ("s = Softmax<axis=1>(x)  y = Relu(s)", 1),
        ("s = Transpose<perm=[1,0]>(x)  y = Relu(s)", 0),
        ("s = Exp(x)  t = CumSum(s, zero)  y = Exp(t)", 1),
        ("s = Relu(x)  t = Trilu<upper=0>(s)  y = Exp(t)", 0),
        ("s = Softmax<axis=1>(x)  y = Add(s, other)", 0),  # another constant for each item
    ],
)
def test_steps_that_mix_the_batch_are_not_cut(text: str, leading: int) -> None:
    proto = model(f"g (float[4,4] x) => (float[4,4] y) {{ {text} }}", zero=np.array(0), other=random(4, 4))
    assert batches._leading(fused(proto), 4) == leading


def stem(batch: int, size: int) -> Steps:
    """Two large values, and eight small ones behind them."""
    small = "\n".join(f"b{n + 1} = Conv(b{n}, v)" for n in range(8))
    text = f"""g (float[{batch},3,{size},{size}] x) => (float[{batch},4,{size // 8},{size // 8}] y) {{
        s = Conv<pads=[1,1,1,1]>(x, w)  b0 = MaxPool<kernel_shape=[8,8], strides=[8,8]>(s)
        {small}  y = Relu(b8)
    }}"""
    return fused(model(text, w=random(4, 3, 3, 3), v=random(4, 4, 1, 1)))


def test_what_is_large_is_cut_on_gpus_alone() -> None:
    steps = stem(64, 512)
    assert best_cut(steps) == Cut(2, 2)
    assert len(in_batches(steps, GPU).steps) == len(steps.steps) + 2 + 2 + 1  # two views of the input, and one join
    assert in_batches(steps, CPU) is steps


@pytest.mark.parametrize(("batch", "size"), [(64, 64), (16, 1024), (33, 1024)])
def test_small_networks_and_small_or_odd_batches_stay_whole(batch: int, size: int) -> None:
    assert best_cut(stem(batch, size)) is None


@pytest.mark.usefixtures("one_by_one")
def test_sessions_pack_weights_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (float[4,3,6,6] x) => (float[4,14,6,6] y) {
        s = MaxPool<kernel_shape=[1,1]>(x)  a = Conv(s, v)  b = Conv(a, w)  y = Concat<axis=1>(a, b)
    }"""
    x, proto = random(4, 3, 6, 6), model(text, v=random(9, 3, 1, 1), w=random(5, 9, 1, 1))
    monkeypatch.setattr(planning, "in_batches", lambda steps, target: cut_in_parts(steps, Cut(3, 2)))
    session = InferenceSession(proto, device=device, store=False)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], by_onnxruntime(proto, {"x": x})[0], atol=1e-4)
    plan = session.plan()
    assert plan.constant_bytes == footprint(plan.network, plan.calls, True, 64, 1 << 30).constants
    parts = [c for c in plan.calls if c.call.sources == ("b",)]
    assert len(parts) == 2
    packed = [{packed_key(plan.network, c, s.name) for s in c.lowering.scratch if s.fill is None} for c in parts]
    assert packed[0] == packed[1]
