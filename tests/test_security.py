"""Texts and files from strangers: nothing runs but what the language means, and nothing takes long.

Mutations of legal texts and random characters give programs or errors that show a place; sources hold no more than the
generator's own words and digits; the package neither evaluates nor unpickles what it reads.
"""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import by_numpy, planned, random
from onnx import helper, numpy_helper
from programs_strategy import Case
from programs_templates import exact_programs, smooth_programs
from targets import CPU

from tilewright.dsl.families import fitting
from tilewright.dsl.parse import parse
from tilewright.dsl.program import Program
from tilewright.dsl.stages import split
from tilewright.errors import LanguageError, ShapeError, TilewrightError, UnsupportedError

# --- texts ----------------------------------------------------------------------------------------------

_HOSTILE = [
    "\x1b[31m", "\x00", "\x07", "\x7f", "\r", "\v", "\f", "\t", "\u2028", "\u202e", "\ud800", "é", "😀", "\\\n", "\\",
    "??/\n", "*/", "/*", "//", "#", "#pragma", '"', "'", "`", ";", "{", "}", "{0}", "{t}", "<0>", "%s", "$", "@", "!",
    "&", "|", "~", "__import__('os')", "__kernel", "get_global_id(0)", "device.local_mem", "op", "def", "where", "tile",
    "inside", "and", "not", "sum", "max", "mean", "cumsum", "argmax", "f32", "i64", "bool", "inf", "nan", "true", "(",
    ")", "[", "]", ",", ":", "=", "+=", "==", "->", "^", "**", "<<", "0", "-1", "1e999", "1e-999", "0x10", "1e5", ".5",
    "2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "9" * 70, "a" * 101, "(" * 120,
    "[" * 120, "- " * 200, "not " * 200, "x0", "y", "i", "\n", "\n\n", " ",
]  # fmt: skip
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|\s+|.", re.DOTALL)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, Case]:
    """A legal text with some of its tokens lost, doubled, swapped, or replaced by others that are hostile."""
    case = draw(st.one_of(exact_programs(), smooth_programs()))
    tokens = _TOKEN.findall(case.text)
    for _ in range(draw(st.integers(1, 4))):
        at, other = draw(st.integers(0, len(tokens) - 1)), draw(st.integers(0, len(tokens) - 1))
        match draw(st.sampled_from(["drop", "double", "swap", "replace", "insert", "character"])):
            case "drop" if len(tokens) > 1:
                del tokens[at]
            case "double":
                tokens.insert(at, tokens[at])
            case "swap":
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case "replace":
                tokens[at] = draw(st.sampled_from(_HOSTILE))
            case "character":
                tokens.insert(at, draw(st.characters()))
            case _:
                tokens.insert(at, draw(st.sampled_from(_HOSTILE)))
    return "".join(tokens), case


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(damaged())
def test_damaged_texts_are_programs_or_language_errors(pair: tuple[str, Case]) -> None:
    text, case = pair
    started = time.process_time()
    refused = _refused(text, case)
    if isinstance(refused, LanguageError):
        _check_message(text, refused)
    assert refused is None or _is_printable(str(refused))
    assert time.process_time() - started < SECONDS


def _refused(text: str, case: Case) -> TilewrightError | None:
    """Why a text is no program, None if it is one, whose sources are then fit to be seen."""
    try:
        for d in parse(text):
            _check_sources(d.specialise({t.name: case.shapes.get(t.name, (3,) * len(t.shape or ())) for t in d.inputs}))
    except (LanguageError, ShapeError, UnsupportedError) as error:
        return error
    return None


@settings(max_examples=150)
@given(st.text(st.one_of(st.characters(), st.sampled_from("opfxy()[]:->=,+*0123456789 \n")), max_size=200))
def test_random_characters_are_language_errors(text: str) -> None:
    for whole in (text, f"op f(x) -> y: y = {text}"):
        refused = _unread(whole)
        if refused is not None:
            _check_message(whole, refused)


def _unread(text: str) -> LanguageError | None:
    try:
        parse(text)
    except LanguageError as error:
        return error
    return None


def _check_message(text: str, error: LanguageError) -> None:
    """It says where, and prints nothing a terminal would obey."""
    lines = text.split("\n")
    assert 1 <= error.line <= len(lines) + 1
    assert 1 <= error.column <= max(map(len, lines)) + 2
    assert _is_printable(str(error))


def _is_printable(message: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in message) and len(message) < 4000


def _check_sources(made: Program) -> None:
    """Sources are ASCII without quotes, backslashes and directives other than pragmas; comments end with their line."""
    for stage in split(made, CPU):
        for family in fitting(stage, CPU):
            for launch in family.lower(stage, CPU, family.default(stage, CPU)).launches:
                assert re.fullmatch(r"[\x20-\x7e\n]*", launch.source)
                code = "\n".join(line.split("//")[0] for line in launch.source.splitlines())
                assert not re.search(r'["\'\\`@$]|/\*|\?\?', code)
                assert "\\" not in launch.source
                assert all(d.startswith("#pragma ") for d in re.findall(r"#.*", code))


LONG = {
    "minus": "-" * 20_000,
    "chain": "x[n] + " * 5_000,
    "comparisons": "x < " * 5_000,
    "arguments": f"max({'x[n], ' * 5_000}1)",
    "reductions": "sum(k) " * 5_000,
    "powers": "2 ^ " * 5_000,
    "products": "z * " * 5_000,
    "statements": "x[n]\n" + "".join(f" t{n}[n] = x[n]\n" for n in range(2_000)),
    "tiles": "x[n]\n tile n: " + "1, " * 10_000 + "1",
    "limits": "x[n]\n" + " where 1 < 2\n" * 3_000,
    "ops": "x[n]\n" + "".join(f"op f{n}(x) -> y: y = x\n" for n in range(1_000)),
    "lines": "x[n]" + "\n" * 30_000,
    "brackets": "(" * 30_000,
    "name": "a" * 30_000,
    "number": "1" * 30_000,
}
SECONDS = 10.0
"""Of processor time, for texts of 30,000 characters; some milliseconds are usual."""


@pytest.mark.parametrize("name", LONG)
def test_long_texts_take_time_in_proportion(name: str) -> None:
    started = time.process_time()
    refused = _unread(f"op long(x[N]) -> y[N]: y[n] = {LONG[name]}")
    assert refused is None or _is_printable(str(refused))
    assert time.process_time() - started < SECONDS


# --- files ----------------------------------------------------------------------------------------------------------

_ODD_NAMES = [
    "a\nb; }",
    "\x1b[2J",
    '*/ "',
    "\\",
    "half",
    "x y",
    "??/",
    "#include <x>",
    "{0}%s",
    "é\u202e",
    "' OR 1=1 --",
]


def _odd_network(names: list[str]) -> onnx.ModelProto:
    """relu(x w + b), softmax; every node and value is named by somebody with intentions."""
    x, w, b, product, total, y, z = names[:7]
    nodes = [
        helper.make_node("MatMul", [x, w], [product], name=names[7]),
        helper.make_node("Add", [product, b], [total], name=names[8]),
        helper.make_node("Relu", [total], [y], name=names[9]),
        helper.make_node("Softmax", [y], [z], name=names[10], axis=-1),
    ]
    weights = [
        numpy_helper.from_array(random(5, 7), w),
        numpy_helper.from_array(random(7), b),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]
        for name, shape in ((x, (3, 5)), (z, (3, 7)))
    )
    graph = helper.make_graph(nodes, "g\n*/", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=5)
@given(st.permutations(_ODD_NAMES))
def test_names_of_networks_reach_no_source(names: list[str]) -> None:
    feeds = {names[0]: random(3, 5)}
    network = planned(_odd_network(names), feeds)
    for call in network.calls:
        _check_sources(call.program)
    (found,) = by_numpy(network, feeds).values()
    total = np.maximum(random(3, 5) @ random(5, 7) + random(7), 0)
    expected = np.exp(total) / np.exp(total).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- the package ----------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tilewright", "graph", "ops", "autotune", "tuning_db", "runtime", "dsl")
EVALUATES = {"eval", "exec", "compile", "__import__"}
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "torch"}
PICKLES = {
    "autotune/messages.py": "messages between a process and the worker that it started, over a pipe of their own",
    "tilewright/torch_peer.py": "benchmarks against networks with random weights: it reads none from a file",
    "tilewright/demo_model.py": "an unpickler that knows four harmless names; what is not one of them is an error",
}
"""The modules that may, with the reason."""


def _sources() -> dict[str, ast.Module]:
    files = [f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))]
    unlinked = [f for f in files if not any(part.is_symlink() for part in f.parents)]
    return {f.relative_to(ROOT).as_posix(): ast.parse(f.read_text(encoding="utf-8")) for f in unlinked}


def test_nothing_is_evaluated_or_unpickled() -> None:
    sources = _sources()
    assert len(sources) > 100
    assert sources.keys() >= PICKLES.keys()
    for name, tree in sources.items():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=function)):
                    assert function not in EVALUATES, f"{name}, line {node.lineno}: {function}"
                case ast.keyword(arg="shell" | "allow_pickle", value=ast.Constant(value=True)):
                    pytest.fail(f"{name}, line {node.value.lineno}: {node.arg}=True")
                case ast.Import(names=found):
                    modules = {alias.name.partition(".")[0] for alias in found}
                    assert name in PICKLES or not modules & UNPICKLES, f"{name}, line {node.lineno}: {modules}"
                case ast.ImportFrom(module=str(module)):
                    assert module.partition(".")[0] not in UNPICKLES, f"{name}, line {node.lineno}: {module}"
                case _:
                    pass
