"""ONNX's conformance suite (`onnx.backend.test`) on tilewright's backend: what passes, and how the rest fails.

    python benchmarks/conformance.py [--device pocl] [--only PATTERN] [--json FILE] [--expect]

Cases run in a process of their own, so that one that crashes or hangs is a result like any other. `--expect` writes
what is refused to the list that the tests hold it against; a wrong result has no place there. The tests use the
functions here case by case.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from tilewright.errors import TilewrightError
from tilewright.graph import backend
from tilewright.runtime import Device

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
EXPECTED = Path(__file__).parents[1] / "tests" / "conformance_expected.json"
SECONDS = 600
"""After which a case counts as hanging."""

PASSED = "passed"
REFUSED = "refused"
ROUNDING = "rounding"
"""A few units in the last place from what the suite expects, which is itself rounded: step by step in f16, say."""
RANDOM = "random"
"""Right in type and shape; the suite compares random numbers, which no two implementations share."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    status: str
    """passed, refused (a TilewrightError), rounding, random, wrong count, shape, type or values, crashed, hung."""
    message: str = ""
    seconds: float = 0.0


@functools.cache
def cases() -> Mapping[str, TestCase]:
    """Every case of the suite by `kind/name`; the first call takes seconds, for the suite computes what it expects."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {f"{kind}/{c.name}": c for kind in KINDS for c in sorted(load_model_tests(kind=kind), key=_name)}


def _name(case: TestCase) -> str:
    return str(case.name)


# --- one case ---------------------------------------------------------------------------------------------------------


def run_case(case: TestCase, device: Device | str) -> Outcome:
    """Run a case on a device and compare its outputs as the suite does."""
    started = time.perf_counter()
    try:
        status, message = _verdict(case, device)
    except TilewrightError as error:
        status, message = REFUSED, str(error)
    except Exception as error:  # whatever else is raised is what this looks for
        status, message = "crashed", f"{type(error).__name__}: {error}"
    return Outcome(status, message, time.perf_counter() - started)


def _verdict(case: TestCase, device: Device | str) -> tuple[str, str]:
    proto = model(case)
    prepared = backend.prepare(proto, device)
    for inputs, expected in data_sets(case):
        found = list(prepared.run(inputs))
        kind = _difference(expected, found, case.rtol, case.atol)
        if kind is None:
            continue
        if kind[0] == "wrong values" and any(n.op_type in _RANDOM for n in _nodes(proto.graph)):
            return RANDOM, ""
        if kind[0] == "wrong values" and all(map(_is_rounding, expected, found)):
            return ROUNDING, kind[1]
        return kind
    return PASSED, ""


_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(body)


def _difference(expected: Any, found: Any, rtol: float, atol: float) -> tuple[str, str] | None:
    """How outputs differ from those expected by the suite's own comparison, None if they do not."""
    try:
        Runner.assert_similar_outputs(expected, found, rtol, atol)
    except TypeError:  # the comparison takes elements of sequences for lists of outputs: they are compared one by one
        return _in_parts(expected, found, rtol, atol)
    except (AssertionError, AttributeError) as error:
        return _sort_of(expected, found), " ".join(str(error).split())[:300]
    return None


def _in_parts(expected: Any, found: Any, rtol: float, atol: float) -> tuple[str, str] | None:
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            return "wrong count", f"{len(found)} instead of {len(expected)}"
        parts = (_in_parts(a, b, rtol, atol) for a, b in zip(expected, found, strict=True))
        return next((p for p in parts if p), None)
    if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray):
        return "wrong type", f"{type(found).__name__} instead of {type(expected).__name__}"
    return _difference([expected], [found], rtol, atol)


def _is_rounding(expected: Any, found: Any) -> bool:
    """Whether floats differ by four units in the last place of the largest element at most."""
    if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f" or not np.isfinite(expected).all():
        return bool(np.array_equal(expected, found))
    unit = float(np.finfo(expected.dtype).eps) * float(np.abs(expected).max(initial=0))
    return float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max(initial=0)) <= 4 * unit


def _sort_of(expected: list[Any], found: list[Any]) -> str:
    if len(expected) != len(found):
        return "wrong count"
    for wanted, given in zip(expected, found, strict=True):
        if isinstance(wanted, list | tuple):
            return "wrong values" if isinstance(given, list | tuple) else "wrong type"
        if wanted is None or given is None or np.shape(wanted) != np.shape(given):
            return "wrong shape"
        if wanted.dtype not in (object, given.dtype):
            return "wrong type"
    return "wrong values"


def model(case: TestCase) -> onnx.ModelProto:
    """The model of a case."""
    return case.model if case.model is not None else onnx.load(_file(case))


def data_sets(case: TestCase) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inputs in the network's order, and the outputs that are expected of them."""
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield [_as_array(i) for i in inputs], [_as_array(o) for o in outputs]
    elif case.url is not None:
        yield _light_data(case)
    else:
        graph = model(case).graph
        for folder in sorted(Path(case.model_dir).glob("test_data_set*")):
            yield _stored(folder, "input", graph.input), _stored(folder, "output", graph.output)


def _as_array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _file(case: TestCase) -> Path:
    if case.model_dir is not None:
        return Path(case.model_dir) / "model.onnx"
    return Path(onnx.__file__).parents[1] / case.url


def _light_data(case: TestCase) -> tuple[list[Any], list[Any]]:
    """The suite's real networks lie beside their outputs; the input is a ramp that its runner makes."""
    file = _file(case)
    graph = onnx.load(file).graph
    weights = {t.name for t in graph.initializer}
    inputs = [Runner.generate_dummy_data(i) for i in graph.input if i.name not in weights]
    outputs = [file.with_name(f"{file.stem}_output_{n}.pb") for n in range(len(graph.output))]
    return inputs, [numpy_helper.to_array(onnx.load_tensor(o)) for o in outputs]


def _stored(folder: Path, role: str, declared: Any) -> list[Any]:
    files = sorted(folder.glob(f"{role}_*.pb"), key=lambda f: int(f.stem.rpartition("_")[2]))
    return [_read(f.read_bytes(), info.type) for f, info in zip(files, declared, strict=False)]


def _read(content: bytes, proto: onnx.TypeProto) -> Any:
    match proto.WhichOneof("value"):
        case "sequence_type":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
        case "optional_type":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


# --- what is expected -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What is known not to pass."""

    onnx: str
    """The version of onnx whose suite was run."""
    cases: Mapping[str, str]
    """Why each case does not pass, by `kind/name`."""


def expected() -> Expected:
    """What the file says."""
    return Expected(**json.loads(EXPECTED.read_text()))


def reason(outcome: Outcome) -> str:
    """A refusal in one line, or what else happened."""
    if outcome.status != REFUSED:
        return outcome.status
    lines = [line.strip() for line in outcome.message.splitlines() if line.strip()]
    listed = [line for line in lines[1:] if "(opset" in line]
    return re.sub(r"^.*?: (?=[\w.:]+ \(opset)", "", listed[0]) if listed else lines[0]


# --- the report -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression for kind/name")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--expect", action="store_true", help=f"write {EXPECTED.name}")
    arguments = parser.parse_args()
    names = [name for name in cases() if re.search(arguments.only, name)]
    outcomes = run_all(names, arguments.device)
    show(outcomes)
    if arguments.json:
        rows = {name: {**asdict(o), "operators": operators(name)} for name, o in outcomes.items()}
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.expect:
        failing = {name: reason(o) for name, o in outcomes.items() if o.status in {REFUSED, ROUNDING, RANDOM}}
        known = expected().cases if EXPECTED.exists() else {}
        kept = {name: why for name, why in known.items() if name in cases() and name not in outcomes}
        listed = Expected(onnx.__version__, dict(sorted({**kept, **failing}.items())))
        EXPECTED.write_text(json.dumps(asdict(listed), indent=1) + "\n")


def run_all(names: list[str], device: str) -> dict[str, Outcome]:
    """The outcomes of the named cases, in a process that is replaced when a case kills it."""
    outcomes: dict[str, Outcome] = {}
    spawn = multiprocessing.get_context("spawn")
    left = list(names)
    while left:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            pool.submit(cases).exception()  # starts and reads the suite, which is nobody's time
            while left:
                name = left.pop(0)
                try:
                    outcomes[name] = pool.submit(run_named, name, device).result(SECONDS)
                except (TimeoutError, BrokenProcessPool) as error:
                    outcomes[name] = Outcome(
                        "hung" if isinstance(error, TimeoutError) else "crashed", "the process died"
                    )
                    for process in pool._processes.values():
                        process.kill()
                    break
    return outcomes


def run_named(name: str, device: str) -> Outcome:
    """One case by its name."""
    return run_case(cases()[name], device)


def operators(name: str) -> list[str]:
    """The operators of a case's model."""
    return sorted({n.op_type for n in _nodes(model(cases()[name]).graph)})


def show(outcomes: Mapping[str, Outcome]) -> None:
    """Counts, then what is wrong case by case, then refusals by reason."""
    by_kind = Counter((name.partition("/")[0], o.status) for name, o in outcomes.items())
    for kind in KINDS:
        counts = {status: n for (k, status), n in sorted(by_kind.items()) if k == kind}
        if counts:
            print(f"{kind:18} {sum(counts.values()):5}  " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    total = Counter(o.status for o in outcomes.values())
    print(f"{'all':18} {len(outcomes):5}  " + ", ".join(f"{n} {status}" for status, n in total.most_common()))
    print(f"{sum(o.seconds for o in outcomes.values()):.0f} s; the slowest: " + _slowest(outcomes))
    for name, o in outcomes.items():
        if o.status not in {PASSED, REFUSED, ROUNDING, RANDOM}:
            print(f"{o.status.upper()}  {name}: {o.message[:200]}")
    for why, n in Counter(reason(o) for o in outcomes.values() if o.status == REFUSED).most_common():
        print(f"{n:5}  {why[:180]}")


def _slowest(outcomes: Mapping[str, Outcome]) -> str:
    ranked = sorted(outcomes.items(), key=lambda pair: -pair[1].seconds)[:8]
    return ", ".join(f"{name} {o.seconds:.1f}" for name, o in ranked)


if __name__ == "__main__":
    main()
