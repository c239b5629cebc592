"""Sums that are written where one of their terms was: which kernels may, when plans do it, and that numbers stay."""

from __future__ import annotations

import numpy as np
import pytest
from networks import by_onnxruntime, model, random

from tilewright.dsl.families.contraction import recognise
from tilewright.dsl.lowering import Launch
from tilewright.dsl.parse import parse_op
from tilewright.graph.footprint import inherited, temporaries
from tilewright.graph.memory import Lifetime
from tilewright.graph.planned import PlannedLaunch
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

SHAPES = {"a": (12, 20), "b": (20, 12), "r": (12, 12)}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("relu((sum(k) a[m,k] * b[k,n]) + r[m,n])", (("r", "y"),)),
        ("(sum(k) a[m,k] * b[k,n]) * 2 + r[m,n] * r[m,n]", (("r", "y"),)),
        ("(sum(k) a[m,k] * b[k,n]) + r[n,m]", ()),  # others read what is written
        ("(sum(k) a[m,k] * b[k,n]) + r[m,n] + r[n,m]", ()),
        ("(sum(k) a[m,k] * b[k,n]) + r[m,0]", ()),
        ("(sum(k) r[m,k] * b[k,n]) + r[m,n]", ()),  # a factor is read by many
    ],
)
def test_a_term_may_be_overwritten_where_each_element_is_read_in_its_own_place(
    value: str, found: tuple[tuple[str, str], ...]
) -> None:
    names = [name for name in SHAPES if f"{name}[" in value]
    listed = ", ".join(f"{name}[{','.join(f'{name.upper()}{d}' for d in range(2))}]" for name in names)
    shapes = {name: SHAPES[name] if "r[m,k]" not in value or name != "b" else (12, 12) for name in names}
    program = parse_op(f"op f({listed}) -> y[12,12]:\n    y[m,n] = {value}").specialise(shapes, {}, {})
    views = recognise(program)
    assert not isinstance(views, str)
    assert [view.in_place for view in views] == [found] * len(views)


def _launch(pairs: dict[str, str], in_place: tuple[tuple[str, str], ...] = (("r", "y"),)) -> PlannedLaunch:
    launch = Launch("k", "", (1,), None, tuple(pairs), ("y",), in_place)
    return PlannedLaunch(None, launch, pairs)  # type: ignore[arg-type]


def test_memory_is_inherited_along_a_chain_of_sums() -> None:
    launches = [
        _launch({"x": "in", "y": "a"}, ()),
        _launch({"x": "a", "y": "t"}, ()),
        _launch({"x": "t", "r": "a", "y": "b"}),
        _launch({"x": "b", "y": "u"}, ()),
        _launch({"x": "u", "r": "b", "y": "c"}),
        _launch({"x": "c", "y": "out"}, ()),
    ]
    alone = [("a", 8, 0, 2), ("t", 4, 1, 2), ("b", 8, 2, 4), ("u", 4, 3, 4), ("c", 8, 4, 5)]
    found = inherited({b[0]: Lifetime(*b) for b in alone}, launches)
    assert found == [Lifetime("a", 8, 0, 5, ("b", "c")), Lifetime("t", 4, 1, 2), Lifetime("u", 4, 3, 4)]


@pytest.mark.parametrize(
    ("sums", "lifetimes"),
    [
        ({"x": "t", "r": "a", "y": "b"}, [("a", 8, 0, 2), ("b", 8, 1, 2)]),  # read later on
        ({"x": "t", "r": "a", "y": "b"}, [("a", 8, 0, 1), ("b", 8, 0, 2)]),  # a part of what there is already
        ({"x": "t", "r": "a", "y": "b"}, [("a", 12, 0, 1), ("b", 8, 1, 2)]),  # of another size
        ({"x": "a", "r": "a", "y": "b"}, [("a", 8, 0, 1), ("b", 8, 1, 2)]),  # read in another way too
        ({"x": "t", "r": "in", "y": "b"}, [("b", 8, 1, 2)]),  # an input, or a constant
        ({"x": "t", "r": "a", "y": "out"}, [("a", 8, 0, 1)]),
    ],
)
def test_memory_stays_where_something_else_needs_it(
    sums: dict[str, str], lifetimes: list[tuple[str, int, int, int]]
) -> None:
    launches = [_launch({"y": "a"}, ()), _launch(sums), _launch({"x": "b", "y": "out"}, ())]
    alone = {b[0]: Lifetime(*b) for b in lifetimes}
    assert inherited(alone, launches) == list(alone.values())


def test_residual_sums_in_place(device: Device) -> None:
    text = """g (float[2,3,5,7] x) => (float[2,19,5,7] y) {
        s = Conv(x, w0)
        p = Conv(s, w1)  a = Relu(p)  b = Conv(a, w2)  c = Add(s, b)  t = Relu(c)
        q = Conv(t, w1)  d = Relu(q)  e = Conv(d, w2)  f = Add(e, t)
        i = Conv(f, w3)  j = Add(i, f)  k = Conv(j, w3)  l = Add(j, k)  y = Add(l, j)
    }"""
    shapes = {"w0": (19, 3), "w1": (11, 19), "w2": (19, 11), "w3": (19, 19)}
    proto = model(text, **{name: random(*shape, 1, 1) / 4 for name, shape in shapes.items()})
    x = random(2, 3, 5, 7)
    session = InferenceSession(proto, device=device, store=False)
    expected = by_onnxruntime(proto, {"x": x})[0]
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=3e-5)
    plan = session.plan()
    lifetimes = temporaries(plan.network, plan.calls)
    assert any(b.heirs for b in lifetimes)
    scratch = sum(b.nbytes for b in lifetimes if b.name not in plan.network.buffers)
    assert plan.arena_bytes <= 4 * 2 * 35 * (19 + 19) + scratch + 1024
