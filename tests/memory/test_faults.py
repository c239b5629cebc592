"""Each kind of fault, planted in a kernel of a family, is reported; the kernel as it was generated is not."""

from __future__ import annotations

import pytest

from memory.faults import DIVERGENCE, FAULTS
from memory.simulator import Outcome, Simulator, is_scalar, reports

LOG = """

Invalid read of size 4 at global memory address 0x1000000000a64
\tKernel: contract
\tEntity: Global(0,2,0) Local(0,0,0) Group(0,2,0)
\t  %14 = load float, float addrspace(1)* %arrayidx, align 4
\tAt line 24 (column 21) of input.cl:
\t  value = g_a[19*i_m + i_k];

warning: 2 warnings generated
"""


def test_reports_are_read() -> None:
    (report,) = reports(LOG)
    assert report.message == "Invalid read of size 4 at global memory address 0x1000000000a64"
    assert report.details.endswith("At line 24 (column 21) of input.cl:\nvalue = g_a[19*i_m + i_k];")
    assert reports("") == ()


def test_vector_code_is_known() -> None:
    assert is_scalar("int i = 4; float float_4 = convert_int(2.0f);")
    for source in ("float8 a;", "vload_half(0, p)", "(int2)(1)", "convert_uchar16(x)"):
        assert not is_scalar(f"x = {source};".replace("convert_", "")), source


def test_without_a_fault_nothing_is_reported(plain: Simulator, watching: Simulator) -> None:
    for watched, worker in ((False, plain), (True, watching)):
        for case in {str(f.case): f.case for f in FAULTS.values() if f.watched is watched}.values():
            assert worker.run(**case, fault="") == Outcome((), "")


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_reported(plain: Simulator, watching: Simulator, name: str) -> None:
    fault = FAULTS[name]
    found = (watching if fault.watched else plain).run(**fault.case, fault=name).reports
    told = [r for r in found if fault.report in r.message]
    assert told, [r.message for r in found[:5]]
    assert fault.report == DIVERGENCE or "At line" in told[0].details
