"""Values that keep their hash, and the arithmetic of index expressions."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from tilewright.dsl.affine import Affine
from tilewright.dsl.hashing import hashed_once
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import walk

TEXT = "op f(x[N,C], b[C]) -> y[N]:\n    y[n] = sum(c) relu(x[n,c] + b[c]) * x[n,0]"
SHAPES = {"x": (3, 4), "b": (4,)}


@hashed_once
@dataclass(frozen=True)
class Counted:
    inner: object


class Inner:
    hashed = 0

    def __hash__(self) -> int:
        Inner.hashed += 1
        return 7


def test_a_hash_is_computed_once() -> None:
    value = Counted(Inner())
    assert hash(value) == hash(value)
    assert Inner.hashed == 1
    assert hash(replace(value)) == hash(value)
    assert Inner.hashed == 2


def test_equal_programs_have_equal_hashes() -> None:
    one, other = (parse_op(TEXT + "\n" * n).specialise(SHAPES) for n in (0, 1))
    assert one == other
    assert one is not other
    assert hash(one) == hash(other)
    assert {one: 1}[other] == 1
    assert hash(replace(one, name="g")) != hash(one)


def test_hashes_do_not_travel() -> None:
    """Texts hash differently in every process, so a kept hash would be wrong in another one."""
    program = parse_op(TEXT).specialise(SHAPES)
    hash(program)
    script = (
        "import pickle, sys\n"
        "from tilewright.dsl.parse import parse_op\n"
        "program = pickle.load(sys.stdin.buffer)\n"
        f"own = parse_op({TEXT!r}).specialise({SHAPES!r})\n"
        "assert program == own\n"
        "assert hash(program) == hash(own)\n"
        "assert {own: 1}[program] == 1\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(program), env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_walks_go_parents_first_and_left_to_right() -> None:
    value = parse_op(TEXT).specialise(SHAPES).statements[0].value
    kinds = [type(e).__name__ + getattr(e, "function", getattr(e, "tensor", "")) for e in walk(value)]
    assert kinds == ["Reduce", "Callmul", "Callrelu", "Calladd", "Readx", "Readb", "Readx"]


TERMS = st.dictionaries(st.sampled_from("abcd"), st.integers(-3, 3), max_size=4)
POSITIONS = st.builds(Affine.of, TERMS, st.integers(-5, 5))


def value_of(a: Affine, at: dict[str, int]) -> int:
    return sum(c * at[str(t)] for t, c in a.terms) + a.constant


@given(st.lists(st.tuples(POSITIONS, st.integers(-4, 4)), max_size=4), st.integers(-5, 5))
def test_weighted_sums(parts: list[tuple[Affine, int]], constant: int) -> None:
    at = {"a": 3, "b": 5, "c": 7, "d": 11}
    found = Affine.weighted([p for p, _ in parts], [w for _, w in parts], constant)
    assert value_of(found, at) == constant + sum(w * value_of(p, at) for p, w in parts)
    assert found == Affine.of(dict(found.terms), found.constant), "terms are sorted and never have coefficient 0"


@given(POSITIONS, POSITIONS, st.sampled_from("abcd"))
def test_sums_and_substitutions(a: Affine, b: Affine, name: str) -> None:
    at = {"a": 3, "b": 5, "c": 7, "d": 11}
    assert value_of(a + b, at) == value_of(a, at) + value_of(b, at)
    assert a + b == b + a
    assert a * 1 is a
    moved = a.substitute({name: b})
    assert value_of(moved, at) == value_of(a, {**at, name: value_of(b, at)})
    assert a.substitute({"other": b}) is a
