"""What wrong texts and wrong arguments are told, and that nothing but the language's own errors comes out."""

from __future__ import annotations

import inspect
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import MAX_CHARACTERS, parse, parse_op
from tilewright.errors import LanguageError, ShapeError

from .texts import CONV, GEMM, HEADER, SEVERAL, SOFTMAX

# --- texts ------------------------------------------------------------------------------------------------------------


def test_pictures() -> None:
    with pytest.raises(LanguageError) as caught:
        parse(HEADER + "y[n,c] = x[n,c] + bb[c]")
    assert str(caught.value) == (
        "line 2, column 23: no tensor is called bb; did you mean 'b'?\n"
        "    2 |     y[n,c] = x[n,c] + bb[c]\n"
        "      |                       ^^"
    )
    assert (caught.value.line, caught.value.column) == (2, 23)
    with pytest.raises(LanguageError) as caught:
        parse("op f(x) -> y:\n\ty = x\x1b[31m\u202e + 1]  # \x07")
    assert str(caught.value) == (
        "line 2, column 7: the character '\\x1b' has no meaning here\n"
        "    2 |  y = x\\x1b[31m\\u202e + 1]  # \\x07\n"
        "      |       ^^^^"
    )
    with pytest.raises(LanguageError) as caught:
        parse("op f(x) -> y: y = " + "x + " * 40 + "z" + " + x" * 40)
    picture = str(caught.value).splitlines()[1:]
    assert len(picture[0]) < 120
    assert picture[0][picture[1].index("^")] == "z"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "expected 'op', found the end of the text; an op starts with: op name(inputs) -> outputs:"),
        ("op", 3, "expected a name, found the end of the line"),
        ("op f", 5, "expected '(', found the end of the line"),
        ("op f(x", 5, "'(' is never closed"),
        ("op f(x[N) -> y: y = x", 9, "')' does not match '[' at line 1, column 7; write ']'"),
        ("op f(x] -> y: y = x", 7, "']' does not match '(' at line 1, column 5; write ')'"),
        ("op f(x)) -> y: y = x", 8, "')' closes nothing"),
        ("op f(x) -> y", 13, "expected ':', found the end of the line; the header ends with ':'"),
        ("op f(x) -> y[N]: f32", 21, "expected '=' or '[', found the end of the line"),
        ("op f(x) y = x", 9, "expected '->' or the end of the line, found 'y'; the header names its outputs"),
        ("op f(x) -> y:", 14, "expected a statement, found the end of the text"),
        ("op f(x) -> y: y", 16, "expected '=' or '[', found the end of the line; a statement reads target[indices] ="),
        ("def f(x): pass", 9, "expected '=', found ':'; a function reads: def name(x, y) = expression"),
        ("op op(x) -> y: y = x", 4, "'op' is a word of the language; choose another name"),
        ("op f(x[N], N) -> y: y = x", 8, "N is already an input; choose another name"),
        ("op f(x; x: int) -> y: y = x", 6, "x is already a parameter; choose another name"),
        ("op f(x) -> x: x = 1", 12, "x is already an input; choose another name"),
        ("op f(x, stride: int) -> y: y = x", 17, "parameters come after a ';'"),
        ("op f(x: float32) -> y: y = x", 9, "no element type is called float32; did you mean 'f32'?"),
        ("op f(x: quux) -> y: y = x", 9, "no element type is called quux; there are bool, i8, i16"),
        ("op f(x; k: foo) -> y: y = x", 12, "a parameter is int, bool, f16, bf16, f32 or f64, not foo"),
        ("op f(x; k: int = 1.5) -> y: y = x", 18, "the parameter k is int, but its default is not an integer"),
        ("op f(x; k: f32 = true) -> y: y = x", 18, "the parameter k is f32, but its default is not a number"),
        ("op f(x; k: bool = 1) -> y: y = x", 19, "the parameter k is bool, but its default is not true or false"),
        ("op f(x pad foo) -> y: y = x", 12, "a number is expected here, found 'foo'"),
        ("op f(x) -> y pad 3: y = x", 18, "only inputs have a pad value"),
        ("op f(x[-1]) -> y: y = x", 8, "a size cannot be negative"),
        ("op f(x[1.5]) -> y: y = x", 8, "a size is made of integers, found 1.5"),
        ("op f(x[N, x]) -> y: y = x", 11, "x is already an input; choose another name"),
        ("op f(x[N<2]) -> y: y = x", 8, "a size is integer arithmetic: + - * / % on names and integers"),
        ("op f(x[N]; k: f32) -> y[k]: y[n] = x[n]", 25, "a size is made of integers, but the parameter k is f32"),
        ("op f(x) -> y, z: y = x", 15, "the output z is never assigned"),
        (f"op {'f' * 101}(x) -> y: y = x", 4, "the name is longer than 100 characters"),
    ],
)
def test_wrong_headers(text: str, column: int, message: str) -> None:
    with pytest.raises(LanguageError, match=re.escape(message)) as caught:
        parse(text)
    assert (caught.value.line, caught.value.column) == (1, column)


STATEMENTS = [
    ("y[n,c] ⟨⟩x[n,c]", "expected '=', found 'x'; a statement reads target[indices] = expression"),
    ("y[n,c] =⟨⟩= x[n,c]", "expected a value, found '='; a statement assigns with a single '='"),
    ("y[n,c] ⟨⟩+ x[n,c]", "expected '=', found '+'; a statement reads target[indices] = expression"),
    ("y[n,c] = x[n,c] ⟨⟩= 1", "'=' assigns, '==' compares"),
    ("y[n,c] = x[n,c] ⟨⟩b[c]", "two values need an operator such as '*' between them"),
    ("y[n,c] = sum ⟨⟩x[n,c]", "a reduction names its indices in round brackets: sum(k) x[n,k]"),
    ("y[n,c] = sum[k] ⟨⟩x[n,c]", "a reduction names its indices in round brackets: sum(k) x[n,k]"),
    ("y[n,c] =⟨⟩  # nothing\n x[n,c]", "an expression goes on in the next line only inside brackets"),
    ("y[n,c] = x[n,c⟨⟩; 1]", "expected ',' or ']', found ';'"),
    ("y[n,c] = x[n,c] < 1 ⟨⟩< 2", "comparisons do not chain; write 'a < b and b < c'"),
    ("y[n,c] = x[n,c] &⟨⟩& 1", "expected a value, found '&'; logic is written with the words and, or, not"),
    ("y[n,c] = ⟨⟩!x[n,c]", "negation is written 'not', inequality '!='"),
    ("y[n,c] = x⟨⟩{n,c}", "indices stand in square brackets"),
    ("y[n,c] = x[n,c] % ⟨⟩% 2", "expected a value, found '%'"),
    ("y[n,c] = x[n,c] ⟨⟩? 1 : 2", "a choice is written where(condition, a, b)"),
    ("y[n,c] = ⟨⟩'a'", "the language has no strings"),
    ("y[n,c] = 1 + ⟨⟩\\", "a line goes on while a bracket is open"),
    ("y[n,c] = ⟨⟩é", "the character 'é' has no meaning here; outside comments only ASCII is read"),
    ("y[n,c] = ⟨⟩\x00", "the character '\\x00' has no meaning here"),
    ("y[n,c] = ⟨⟩99999999999999999999", "the integer does not fit in 64 bits"),
    ("y[n,c] = ⟨⟩1e999", "the number is too large for f64; write inf for infinity"),
    ("y[n,c] = ⟨⟩" + "1" * 61, "the number has more than 60 digits"),
    ("y[n,c] = " + "(" * 100 + "⟨⟩(1" + ")" * 101, "brackets are nested more than 100 levels deep"),
    ("y[n,c] = 1 + ⟨⟩1" + " + 1" * 99, "the expression is nested more than 100 levels deep"),
    (
        "⟨⟩y[n,c] = " + "".join(f"any(j{n}) (x[n,j{n}] + " for n in range(40)) + "1" + ")" * 40,
        "the value of y is nested too deeply; assign a part of it to an intermediate",
    ),
    # targets
    ("⟨⟩x[n,c] = 1", "x is an input and cannot be assigned"),
    ("⟨⟩k = 1", "k is a parameter and cannot be assigned"),
    ("⟨⟩N[n] = 3", "N is a size; a size equation has no brackets: N = ..."),
    ("N = 3\n ⟨⟩N = 4", "the size N is given twice"),
    ("N = ⟨⟩N + 1", "the size N is given by itself"),
    ("N = ⟨⟩x[0,0]", "a size equation cannot depend on data"),
    ("N = 2 * ⟨⟩x", "a size equation cannot depend on data, and x is an input"),
    ("N = ⟨⟩sqrt(4)", "a size equation is integer arithmetic: + - * / % on names and integers"),
    ("N = ⟨⟩mul(2, 4)", "a size equation is integer arithmetic: + - * / % on names and integers"),
    ("N = ⟨⟩Cc + 1", "no size or int parameter is called Cc; did you mean 'C'?"),
    ("y[n,c] = 1\n    ⟨⟩y[n,c] = 2", "y is assigned twice; every tensor is assigned by one statement"),
    ("⟨⟩y[n] = b[n]", "y is declared with 2 dimensions but has 1 index here"),
    ("y[n,⟨⟩n] = x[n,n]", "the index n stands twice on the left; indices there differ"),
    ("y[n,⟨⟩c+1] = x[n,c]", "the left side has bare indices, one per dimension: y[n,c] = ..."),
    ("y[n,⟨⟩k] = x[n,k]", "k is a parameter; choose another name for the index"),
    ("y[n,⟨⟩device] = x[n,c]", "'device' is a word of the language; choose another name"),
]
EXPRESSIONS = [
    ("⟨⟩xx", "no tensor, size, parameter or index is called xx; did you mean 'x'?"),
    ("⟨⟩exp", "exp is a function; its arguments follow in brackets: exp(...)"),
    ("⟨⟩x", "x has 2 dimensions; read one element, such as x[i,j]"),
    ("⟨⟩k[n]", "k is a parameter and has no elements"),
    ("⟨⟩device.local_mem", "device.local_mem can stand in a where line only"),
    ("0\n    t[c] = ⟨⟩t[c]", "t is read in its own definition; assign to an intermediate first"),
    ("⟨⟩t[c]\n    t[c] = b[c]", "t is read before it is assigned; move its statement up"),
    ("⟨⟩x[n]", "x has 2 dimensions but is read with 1 index"),
    ("x[n,⟨⟩j]", "the index j is neither on the left side nor bound by a reduction; to add over it, write sum(j)"),
    ("x[n*⟨⟩nn,c]", "the index nn is neither on the left side nor bound by a reduction; did you mean 'n'?"),
    ("x[⟨⟩b[c],c]", "an index is an integer, found f32; convert it, such as i32(...)"),
    ("x[⟨⟩n+exp(c),c]", "an index is an integer, found f32; convert it, such as i32(...)"),
    ("x[n^⟨⟩2.5,c]", "an index is made of integers, found 2.5"),
    ("x[⟨⟩b,c]", "b has 1 dimension; read one element, such as b[i]"),
    ("x[i32(b[⟨⟩j]),c]", "the index j is neither on the left side nor bound by a reduction"),
    ("x[n,⟨⟩true]", "an index is made of integers, found true"),
    ("x[⟨⟩j/2,c]", "the index j is neither on the left side nor bound by a reduction; to add over it, write sum(j)"),
    ("index(⟨⟩b[c])", "an index is an integer, found f32; convert it, such as i32(...)"),
    ("⟨⟩x[n,c] & 1", "bitand takes integers, found f32; convert it, such as i32(...)"),
    ("1 << ⟨⟩~x[n,c]", "bitnot takes integers, found f32; convert it, such as i32(...)"),
    ("⟨⟩gcd(n, b[c])", "gcd takes integers, found f32; convert it, such as i32(...)"),
    ("⟨⟩nextafter(f16(b[c]), f16(1))", "nextafter takes f32 or f64: f16 and bf16 are computed in f32"),
    ("⟨⟩elu(b[c], 1, 2)", "elu takes 1 to 2 arguments, found 3"),
    ("⟨⟩erfcc(b[c])", "no function is called erfcc; did you mean 'erfc'?"),
    ("x[n+⟨⟩eps,c]", "an index is made of integers, but the parameter eps is f32"),
    ("x[⟨⟩0.5,c]", "an index is made of integers, found 0.5"),
    # functions and reductions
    ("⟨⟩exq(x[n,c])", "no function is called exq; did you mean 'exp'?"),
    ("⟨⟩x(n,c)", "x is an input, not a function; its indices stand in '[' and ']'"),
    ("⟨⟩eps(1)", "eps is a parameter, not a function"),
    ("⟨⟩where(x[n,c], 1)", "where takes 3 arguments, found 2"),
    ("⟨⟩f32()", "f32 takes 1 argument, found 0"),
    ("⟨⟩max()", "max() has no arguments"),
    ("⟨⟩sum(x[n,c], 1)", "sum takes one whole tensor, or indices with a body: sum(k) a[m,k]"),
    ("⟨⟩inside(1)", "inside takes one read: inside(x[n,p+r])"),
    ("⟨⟩sum(x)", "sum of a whole tensor stands in statements without indices; here write sum(k) x[k]"),
    ("⟨⟩sum(j) - x[n,j]", "sum(j) has no body: write sum(j) a[j], and put a body that starts with a sign in brackets"),
    ("max(j: ⟨⟩3)", "only the index of a reduction takes an extent; its body is missing"),
    ("⟨⟩sun(j) x[n,j]", "no reduction is called sun; did you mean 'sum'?"),
    ("⟨⟩quux(j) x[n,j]", "no reduction is called quux; there are sum, prod, max, min, mean, any, all, argmax,"),
    ("relu(x[n,c]) ⟨⟩x[n,c]", "relu(...) is a value; an operator such as '*' must follow it"),
    ("⟨⟩sum() x[n,c]", "sum() names no index; write for example sum(k) a[m,k]"),
    ("sum(⟨⟩2*j) x[n,j]", "a reduction names bare indices: sum(k) a[m,k]"),
    ("sum(⟨⟩n) x[n,c]", "the index n is already bound; choose another name for this one"),
    ("sum(⟨⟩j) x[n,c]", "the index j of sum is never used in its body"),
    (
        "sum(j) x[n,j] + b[⟨⟩j]",
        "the index j is bound by a reduction that ends before here; a reduction takes one product",
    ),
    ("sum(j) x[n,j] + ⟨⟩j", "put its whole body in brackets, sum(j) (...)"),
    ("⟨⟩cumsum(x)", "cumsum names the index it runs along: y[r,k] = cumsum(k) x[r,k]"),
    ("cumsum(⟨⟩j) x[n,j]", "cumsum runs along an index of the left side or of a reduction around it, and j is none"),
    ("cumsum(⟨⟩n,c) x[n,c]", "cumsum runs along one index: y[r,k] = cumsum(k) x[r,k]"),
    ("cumsum(⟨⟩2) x[n,c]", "cumsum runs along one index: y[r,k] = cumsum(k) x[r,k]"),
    ("cumsum(⟨⟩n) x[0,c]", "the index n of cumsum is never used in its body"),
    (
        "mean(⟨⟩j <= n) x[n,j]",
        "an index with an end stands alone, in sum, prod, max, min, any or all: sum(j",
    ),
    ("sum(⟨⟩j <= n, i) x[i,j]", "an index with an end stands alone, in sum, prod, max, min, any or all"),
    ("sum(⟨⟩2*j <= n) x[n,j]", "a reduction's end is written with its index on the left: sum(j <= k) x[j]"),
    ("sum(j <= ⟨⟩b[0]) x[n,j]", "an index is an integer, found f32; convert it, such as i32(...)"),
    ("sum(⟨⟩j == n) x[n,j]", "a reduction names bare indices: sum(k) a[m,k]"),
    ("sum(⟨⟩j) x[n,j+1]", "the extent of index j does not follow from its reads; write it: sum(j: 3)"),
]
TUNING = [
    ("tile ⟨⟩q: 3", "no statement has an index q"),
    ("tile ⟨⟩n:", "tile n gives no values; write for example: tile n: 16, 32"),
    ("tile n: 2\n tile ⟨⟩n: 3", "the tile of n is given twice"),
    ("tile n: 4, ⟨⟩0", "a tile size is a positive integer below 2^31"),
    ("tile n: 4 per item ⟨⟩1.5", "a tile size is a positive integer below 2^31"),
    ("where ⟨⟩local_byte < 3", "cannot speak of local_byte; did you mean 'local_bytes'?; it knows"),
    ("where ⟨⟩local_bytes", "a where line is one comparison: where local_bytes <= device.local_mem"),
    ("where ⟨⟩lt(1, 2)", "a where line is one comparison"),
    ("where ⟨⟩x[0,0] < 2", "a where line compares integer arithmetic"),
    ("where 2 < ⟨⟩1.5", "a where line compares integer arithmetic"),
    ("where 2 < ⟨⟩tile_q", "a where line cannot speak of tile_q; did you mean 'tile_n'?"),
]
"""Bodies with ⟨⟩ in front of the place that the error must show, and (a part of) what it must say."""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        *STATEMENTS,
        *((f"y[n,c] = {body}", message) for body, message in EXPRESSIONS),
        *((f"y[n,c] = 1\n    {line}", message) for line, message in TUNING),
    ],
)
def test_wrong_bodies(body: str, message: str) -> None:
    before, after = (HEADER + body).split("⟨⟩")
    with pytest.raises(LanguageError, match=re.escape(message)) as caught:
        parse_op(before + after).specialise({"x": (3, 4), "b": (4,)})
    assert (caught.value.line, caught.value.column) == (before.count("\n") + 1, len(before) - before.rfind("\n"))


def test_limits_of_texts() -> None:
    with pytest.raises(LanguageError, match=f"the text has {MAX_CHARACTERS + 1} characters; at most"):
        parse("#" * (MAX_CHARACTERS + 1))
    with pytest.raises(LanguageError, match="one op is expected here, but the text defines f and g"):
        parse_op("op f(x) -> y: y = x\nop g(x) -> y: y = x")
    with pytest.raises(LanguageError, match="expected"):
        parse("op f(x) -> y: y = " + "-" * 5_000 + "*")
    with pytest.raises(LanguageError, match="nested more than"):
        parse("op f(x) -> y: y = " + "-" * 5_000 + "x")
    many = ", ".join(f"x[{n}]" for n in range(1000))  # arguments of a function do not nest
    assert parse_op(f"op f(x[N]) -> y[1]: y[n] = max({many})").specialise({"x": (1000,)}).outputs[0].shape == (1,)


def test_a_nearly_full_stack_is_a_language_error() -> None:
    text = "op f(x[N]) -> y[N]: y[n] = " + "(" * 90 + "x[n]" + " + 1)" * 90

    def parse_below(frames: int) -> None:
        if frames:
            parse_below(frames - 1)
        else:
            parse(text)

    def specialise_below(frames: int) -> None:
        if frames:
            specialise_below(frames - 1)
        else:
            ready.specialise({"x": (3,)})

    frames = sys.getrecursionlimit() - len(inspect.stack(0)) - 120
    with pytest.raises(LanguageError, match="nested too deeply for the stack that is left"):
        parse_below(frames)
    ready = parse_op(text)
    with pytest.raises(LanguageError, match="nested too deeply for the stack that is left"):
        specialise_below(frames)


# --- sizes and arguments ----------------------------------------------------------------------------------------------

SIZES = [
    (
        GEMM,
        {"a": (3, 4), "b": (5, 6), "bias": (6,)},
        "op gemm: dimension 0 of b should be K = 4 (from dimension 1 of a), found 5",
    ),
    (GEMM, {"a": (3, 4), "b": (4,), "bias": (6,)}, "op gemm: b should have 2 dimensions, found 1: [4]"),
    (GEMM, {"a": (3, 4)}, "op gemm: the input b is missing"),
    (GEMM, {"A": (3, 4)}, "op gemm: no input is called 'A'; did you mean 'a'?"),
    ("op f(x[N]) -> y: y = x", {"zebra": ()}, "no input is called 'zebra'; there is x"),
    ("op f(x[N]) -> y[N]: y[n] = x[n / 0]", {"x": (2,)}, "n / 0 divides by zero"),
    ("op f(x[N]; k: int = 0) -> y[N]: y[n] = x[n % k]", {"x": (2,)}, "n % k divides by zero (with k = 0)"),
    ("op f(x[N]; k: int = 64) -> y[N]: y[n] = x[n + (1 << k)]", {"x": (2,)}, "1 << k moves by a number of bits"),
    ("op f(x[N]) -> y[P]: y[p] = x[p / 2]", {"x": (4,)}, "dimension 0 of y (index p) does not follow"),
    (GEMM, {"a": (3, -4)}, "the input a has the impossible shape [3, -4]"),
    (GEMM, {"a": (2**40, 2**40)}, "the input a has the impossible shape"),
    ("op f(x[N,3]) -> y: y = x", {"x": (2, 4)}, "dimension 1 of x should be 3, found 4"),
    ("op f(x[N,2*N]) -> y: y = x", {"x": (2, 5)}, "dimension 1 of x should be 2 * N = 4, found 5"),
    ("op f(x[2*N]) -> y: y = x", {"x": (4,)}, "dimension 0 of x is declared as 2 * N, whose names are not known"),
    ("op f(x[N], z[N/0]) -> y: y = x", {"x": (2,), "z": (1,)}, "N / 0 divides by zero (with N = 2)"),
    ("op f(x[N]) -> y[N^99]: y[n] = x[n+0]", {"x": (2,)}, "N ^ 99 has an exponent outside 0 to 64"),
    ("op f(x[N]) -> y[N^63]: y[n] = x[n+0]", {"x": (2,)}, "N ^ 63 is too large (with N = 2)"),
    ("op f(x[N]) -> y[N-3]: y[n] = x[n+0]", {"x": (2,)}, "dimension 0 of y is negative: N - 3 = -1"),
    ("op f(x[N]) -> y[N^40,N^40]: y[n,m] = x[n+0]+x[m+0]", {"x": (2,)}, "y has the impossible shape"),
    ("op f(x[H]) -> y[P]:\n P = H - 9\n y[p] = x[p+0]", {"x": (4,)}, "the size P = H - 9 is negative: -5"),
    # extents of indices
    (
        "op f(x[N], b[M]) -> y: y[n] = x[n] + b[n]",
        {"x": (4,), "b": (5,)},
        "index n runs over 4 by dimension 0 of x, but over 5 by dimension 0 of b; sizes that broadcast are read at 0",
    ),
    ("op f(x) -> y: y[n: 3] = x[n]", {"x": (4,)}, "index n runs over 3 by the extent 3 written with it, but over 4"),
    ("op f(x[N]) -> y: y[n: N-9] = x[n]", {"x": (4,)}, "the extent N - 9 of index n is negative: -5"),
    (
        "op f(x[N]) -> y[M], z[L]:\n z[n: M] = 1\n y[n] = x[2*n]",
        {"x": (4,)},
        "the extent M of index n names a size that is not known",
    ),
    (
        "op f(x[H], w[R]) -> y[P]: y[p] = sum(r) x[p+r]*w[r]",
        {"x": (4,), "w": (9,)},
        "dimension 0 of y would have size -4 by dimension 0 of x; the window is larger than what it slides over",
    ),
    (
        "op f(x[H], z[I]) -> y[P]: y[p] = x[2*p] + z[p+1]",
        {"x": (4,), "z": (9,)},
        "dimension 0 of y has size 2 by dimension 0 of x and 8 by dimension 0 of z; a size equation (P = ...) decides",
    ),
    (
        "op f(x[H]) -> y[P]: y[p] = x[3-p]",
        {"x": (4,)},
        "dimension 0 of y (index p) does not follow from the arguments; give it a size equation such as",
    ),
    ("op f(x[H]) -> y[P,Q]: y[p,q] = x[p+q]", {"x": (4,)}, "dimension 0 of y (index p) does not follow"),
    ("op f(x) -> y: y[n] = x[n]", {"x": (4, 5)}, "x has the shape [4, 5] but is read with 1 index"),
    (
        "op f(x, z[N]) -> y: y[n] = z[n] * inside(x[n,0])",
        {"x": (4,), "z": (3,)},
        "x has the shape [4] but is asked with 2 indices",
    ),
    (
        "op f(x, z[N]) -> y: y[n] = z[n] * x",
        {"x": (4,), "z": (3,)},
        "x has the shape [4]; a statement with indices reads its elements",
    ),
    (
        "op f(x) -> y[N,2]: y[n,0] = x[n]",
        {"x": (4,)},
        "dimension 1 of y has size 2, but the statement assigns place 0 only",
    ),
    (
        "op f(x[N]) -> z, y[M]:\n z[n] = x[n] * M\n y[n] = x[2*n]",
        {"x": (4,)},
        "the size M is used before it is known; give it a size equation",
    ),
    (
        "op f(x[N]) -> z[N], y[M]:\n z[n] = x[n+M]\n y[n] = x[2*n]",
        {"x": (4,)},
        "the index n + M names a size that is not known; give it a size equation",
    ),
    # the short form
    ("op f(x, b) -> y: y = x + b", {"x": (3, 4), "b": (3,)}, "shapes [3, 4] and [3] do not broadcast in x + b"),
    ("op f(x) -> y[3]: y = x", {"x": (4,)}, "a value of shape [4] does not fit y of shape [3]; sum(...) or another"),
    ("op f(x) -> y[1]: y = x", {"x": (2, 1)}, "a value of shape [2, 1] does not fit y of shape [1]"),
    ("op f(x) -> y[N,C]: y = x", {"x": (4,)}, "y should have 2 dimensions, but its value has the shape [4]"),
    ("op f(x[N,C]) -> y[N,C]: y = sum(x)", {"x": (3, 4)}, "sum(x) has nothing to reduce: y has the full shape [3, 4]"),
    (
        "op f(x[N,C], d[D,C]) -> y[D,1]: y = sum(x)",
        {"x": (3, 4), "d": (3, 4)},
        "sum(x): size N of its argument would become D of y; write this reduction with indices",
    ),
    ("op f(x, d[D]) -> y[D]: y = sum(x)", {"x": (3, 4), "d": (5,)}, "sum(x): shape [3, 4] cannot be reduced to [5]"),
    # pad values
    ("op f(x: i8 pad 300) -> y: y = x", {"x": (3,)}, "the pad value 300.0 of x does not exist in i8"),
    ("op f(x: i8 pad nan) -> y: y = x", {"x": (3,)}, "the pad value nan of x does not exist in i8"),
    ("op f(x: bool pad 2) -> y: y = x", {"x": (3,)}, "the pad value 2.0 of x does not exist in bool"),
]


@pytest.mark.parametrize(("text", "shapes", "message"), SIZES)
def test_sizes_that_do_not_fit(text: str, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    d = parse_op(text)
    with pytest.raises(ShapeError, match=re.escape(message)):
        d.specialise(shapes, {t.name: t.dtype for t in d.inputs if t.dtype})


def test_equations_that_cannot_be_computed() -> None:
    d = parse_op("op f(x[0*P+3], z[0*Q+1]) -> y:\n P = Q + 1\n y = x")
    with pytest.raises(ShapeError, match=re.escape("the size P = Q + 1 cannot be computed; give the sizes it names")):
        d.specialise({"x": (3,), "z": (1,)})
    assert d.specialise({"x": (3,), "z": (1,)}, sizes={"Q": 5}).outputs[0].shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameters": {}}, "op f: the parameter k (int) is missing"),
        ({"parameters": {"k": 1, "stride": 2}}, "no parameter is called 'stride'; there is k, eps and flag"),
        ({"parameters": {"k": 1.5}}, "the parameter k is int, but 1.5 is not an integer"),
        ({"parameters": {"k": 2**70}}, "does not fit in 64 bits"),
        ({"parameters": {"k": True}}, "the parameter k is int, but True is not a number"),
        ({"parameters": {"k": 1, "eps": "x"}}, "the parameter eps is f32, but 'x' is not a number"),
        ({"parameters": {"k": 1, "flag": 3}}, "the parameter flag is bool, but 3 is not true or false"),
        ({"parameters": {"k": 1}, "sizes": {"M": 3}}, "no size is called 'M'; there is N"),
        ({"parameters": {"k": 1}, "sizes": {"N": -3}}, "the size N cannot be -3"),
        (
            {"parameters": {"k": 1}, "sizes": {"N": 5}},
            "the argument sizes should be N = 4 (from dimension 0 of x), found 5",
        ),
        ({"parameters": {"k": 1}, "dtypes": {"x": DType.F64}}, "the input x should be f16, found f64"),
        ({"parameters": {"k": 1}, "dtypes": {"q": DType.F64}}, "no input is called 'q'"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, dict[str, object]], message: str) -> None:
    d = parse_op("op f(x[N]: f16; k: int, eps: f32 = 1, flag: bool = false) -> y: y = x * k + eps")
    with pytest.raises(ShapeError, match=re.escape(message)):
        d.specialise({"x": (4,)}, **arguments)  # type: ignore[arg-type]


# --- any text ---------------------------------------------------------------------------------------------------------

WORDS = re.findall(
    r"\S+",
    """op f ( ) [ ] , : ; = == -> + - * / // % & | ~ << >> ^ ** < > <= and or not x y z N C n c k sum max
    mean argmax cumsum where tile per item pad inf nan inside index device
    def += -= *= vector unroll stage work_group fast_math precision tf32 ;k=2 . 0 1 2.5 1e9 x[n] sum(k) f32 int
    bool local_bytes""",
)
WORDS += ["#", "\n", "é", "\x1b", "\t"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(WORDS), max_size=40),
    st.sampled_from(["", "op f(x[N,C]) -> y[N,C]: ", "op f(x) -> y: y = "]),
)
def test_random_words_give_the_languages_errors_alone(words: list[str], start: str) -> None:
    read(start + " ".join(words))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["", "op f(x[N,C]) -> y[N,C]: y[n,c] = "]))
def test_random_text_gives_the_languages_errors_alone(text: str, start: str) -> None:
    read(start + text)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([GEMM, SOFTMAX, CONV, SEVERAL, HEADER + "y[n,c] = x[n,c] + b[c]^2"]), st.data())
def test_damaged_programs_give_the_languages_errors_alone(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from([*WORDS, ""])) + text[at + data.draw(st.integers(0, 3)) :]
    read(text)


def read(text: str) -> None:
    """Parse, and specialise where that works; all that may be raised are the language's errors, safe to print."""
    try:
        definitions, message = parse(text), ""
    except LanguageError as error:
        definitions, message = (), str(error)
    assert all(line.isprintable() for line in message.split("\n"))
    for d in definitions:
        shapes = {t.name: (3, 3) if t.dims is None else (3,) * len(t.dims) for t in d.inputs}
        values = {p.name: True if p.type == "bool" else 1 for p in d.parameters}
        try:
            program = d.specialise(shapes, {t.name: t.dtype or DType.F32 for t in d.inputs}, values)
        except (LanguageError, ShapeError):
            continue
        assert len(program.signature) == 16
        assert all(s.value.dtype is program.tensors[s.target].dtype for s in program.statements)
