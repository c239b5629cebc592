"""The search space of CLBlast's matrix product (xgemm), in three sizes.

The parameters, their values and the conditions on them are those of CLBlast's tuner (C. Nugteren, "CLBlast: a tuned
OpenCL BLAS library", IWOCL 2018; src/tuning/kernels/xgemm.hpp), with work-groups of at most 1,024 items and 48 KiB of
local memory. "large" is CLBlast's own large set; the others have more values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tilewright.dsl.space import Constraint, Parameter, Space

Values = Mapping[str, tuple[int, ...]]

_TILES = (16, 32, 64, 128)
_LARGE: Values = {
    "MWG": _TILES,
    "NWG": _TILES,
    "KWG": (16, 32),
    "MDIMC": (8, 16, 32),
    "NDIMC": (8, 16, 32),
    "MDIMA": (8, 16, 32),
    "NDIMB": (8, 16, 32),
    "KWI": (2,),
    "VWM": (1, 2, 4, 8),
    "VWN": (1, 2, 4, 8),
    "STRM": (0, 1),
    "STRN": (0, 1),
    "SA": (0, 1),
    "SB": (0, 1),
}
_MIDDLE: Values = {
    **_LARGE,
    "KWG": (16, 32, 64),
    "KWI": (2, 4, 8, 16),
    **dict.fromkeys(("MDIMC", "NDIMC", "MDIMA", "NDIMB"), (4, 8, 16, 32)),
}
_WIDE: Values = {
    **_MIDDLE,
    "MWG": (8, 16, 32, 64, 128, 256),
    "NWG": (8, 16, 32, 64, 128, 256),
    **dict.fromkeys(("MDIMC", "NDIMC", "MDIMA", "NDIMB"), (4, 8, 16, 32, 64)),
}
SPACES: Mapping[str, Values] = {"large": _LARGE, "middle": _MIDDLE, "wide": _WIDE}

CONDITIONS: Mapping[str, str] = {
    "the depth is whole steps": "KWG % KWI == 0",
    "an item has whole vectors of M": "MWG % (MDIMC * VWM) == 0",
    "an item has whole vectors of N": "NWG % (NDIMC * VWN) == 0",
    "A is loaded in whole vectors": "MWG % (MDIMA * VWM) == 0",
    "B is loaded in whole vectors": "NWG % (NDIMB * VWN) == 0",
    "A is loaded in whole rows": "KWG % (MDIMC * NDIMC / MDIMA) == 0",
    "B is loaded in whole rows": "KWG % (MDIMC * NDIMC / NDIMB) == 0",
    "the work-group is not too large": "MDIMC * NDIMC <= 1024",
    "the tiles fit local memory": "4 * KWG * (SA * MWG + SB * NWG) <= 49152",
}
"""By reason, as Python expressions, which every builder of spaces gets."""


def names(expression: str) -> tuple[str, ...]:
    """The parameters that a condition names."""
    return tuple(dict.fromkeys(re.findall(r"[A-Z]+", expression)))


def condition(expression: str) -> Callable[..., bool]:
    """A condition as a function whose arguments are called like the parameters."""
    function: Callable[..., bool] = eval(f"lambda {', '.join(names(expression))}: {expression}")
    return function


def xgemm(values: Values) -> Space:
    """The space with these values."""

    def constraint(reason: str, expression: str) -> Constraint:
        holds, read = condition(expression), names(expression)
        return Constraint(reason, lambda c: holds(*(c[n] for n in read)))

    parameters = tuple(Parameter(n, v, "see CLBlast's xgemm kernel") for n, v in values.items())
    return Space(parameters, tuple(constraint(*c) for c in CONDITIONS.items()))
