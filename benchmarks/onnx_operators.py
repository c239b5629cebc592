"""The table of operators in docs/onnx.md: which of ONNX's operators run where.

python benchmarks/onnx_operators.py        writes it anew
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.reference.op_run import RuntimeContextError, RuntimeImplementationError
from onnx.reference.ops import load_op

from tilewright.graph.host_operators import HOST_OPERATORS
from tilewright.graph.onnx_import import SHAPE_READERS
from tilewright.graph.parts import CONTROL
from tilewright.ops import OPERATORS

PAGE = Path(__file__).parents[1] / "docs" / "onnx.md"
BEGIN, END = "<!-- operators: made by benchmarks/onnx_operators.py -->\n", "<!-- end of operators -->\n"

DEVICE = "device"
COMPOSED = "device, as the operators that define it"
FOLDED = "ahead of runs"
CONTROL_FLOW = "host, its bodies wherever their nodes run"
HOST = "host"
MISSING = "nowhere"


def rows() -> Iterator[tuple[str, int, str]]:
    """Name, newest version and place of every operator of ONNX's own domain, by name."""
    newest: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and not schema.deprecated:
            newest[schema.name] = max(newest.get(schema.name, 0), schema.since_version)
    for name, version in sorted(newest.items()):
        yield name, version, place(name, version)


def place(name: str, version: int) -> str:
    """Where an operator runs if its attributes and types have a device form."""
    if name in OPERATORS:
        return DEVICE
    if name in CONTROL:
        return CONTROL_FLOW
    if name in SHAPE_READERS | {"Constant"}:
        return FOLDED
    if name in HOST_OPERATORS:
        return HOST
    schema = onnx.defs.get_schema(name, version, "")
    inside = {n.op_type for n in schema.function_body.node} if schema.has_function else set()
    if inside and inside <= OPERATORS.keys() | SHAPE_READERS | {"Constant"}:
        return COMPOSED
    return HOST if _evaluator_has(name, version) else MISSING


def _evaluator_has(name: str, version: int) -> bool:
    try:
        load_op("", name, version)
    except (RuntimeContextError, RuntimeImplementationError):
        return False
    return True


def table() -> str:
    """The lines between the marks."""
    found = list(rows())
    counts = Counter(where for _, _, where in found)
    summary = "; ".join(f"{where}: {n}" for where, n in counts.most_common())
    lines = [f"onnx {onnx.__version__}, {len(found)} operators. {summary}.", ""]
    lines += ["| operator | newest version | runs |", "| --- | --- | --- |"]
    lines += [f"| {name} | {version} | {where} |" for name, version, where in found]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}")


if __name__ == "__main__":
    main()
