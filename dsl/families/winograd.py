"""The `winograd` family: convolutions of stride 1 with fewer multiplications, by tiles of m outputs per dimension.

F(m, r) takes m + r - 1 multiplications for m outputs of a filter of r taps; in two dimensions F(4, 3) takes 36 where
the sum takes 144. `winograd_transforms.py` derives the matrices, `winograd_convolution.py` says what a program must
look like, `winograd_fused.py` and `winograd_staged.py` write the kernels; here are the spaces and the choice that is
made without tuning.

Rounding errors in f32 relative to the largest output, for 3 x 3 windows and 64 to 512 channels of normal numbers: 4e-7
to 8e-7 for m = 2, 1.8e-6 to 2.9e-6 for m = 4; direct sums have 2e-7 to 4e-7. With m = 6 it is up to 1.9e-5, which is
more than contractions are tested for, so that is offered in one dimension only (see `amplification`). The fused form
sums 16 channels at a time, which takes a quarter (64 channels) to a half (512) off these.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from tilewright.dsl.families import winograd_fused, winograd_model, winograd_staged
from tilewright.dsl.families.contract import CONTRACT
from tilewright.dsl.families.shared import banner, needs_f64
from tilewright.dsl.families.winograd_convolution import Tiling, recognise
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space, Value
from tilewright.dsl.target import Shape, Target
from tilewright.dsl.writer import preamble

FUSED, STAGED = "fused", "staged"
TILES = (1, 2, 4, 8)
"""Register tiles per block of a fused kernel, or per work-item of the products' kernel."""
SPLITS = (1, 2, 4, 8, 16)
"""Among how many work-items the output channels of a block may be shared out."""


class Winograd:
    """Convolutions of stride and dilation 1, of 2 to 7 taps per dimension."""

    name = "winograd"

    def refusal(self, program: Program, target: Target) -> str | None:
        """Why the program is no such convolution, or None."""
        if program.hints or program.limits:
            return "its tuning lines speak of the sum's own loops"
        found = recognise(program)
        if isinstance(found, str):
            return found
        return needs_f64(program, target) or winograd_model.waste(found)

    def space(self, program: Program, target: Target) -> Space:
        """The size of a tile, and what the products' kernels need: register tiles on CPUs, work-groups' on GPUs."""
        tilings = _tilings(program)
        return _cpu_space(tilings, target) if target.shape is Shape.CPU else _gpu_space(tilings, target)

    def default(self, program: Program, target: Target) -> Configuration:
        """The tile that a model of the work prefers; the register tile as for a product of that size."""
        tilings = _tilings(program)
        return _cpu_default(tilings, target) if target.shape is Shape.CPU else _gpu_default(tilings, target)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """The launches of one configuration: the weights' first, which a plan runs once if they are constant."""
        t = _tilings(program)[configuration.integer("m")]
        if configuration.get("form") == FUSED:
            lowering, helpers = winograd_fused.lower(t, target, configuration)
        else:
            lowering, helpers = winograd_staged.lower(t, target, _product_configuration(t, target, configuration))
        # One program for all kernels: every compilation has a fixed cost beside that of its text.
        top = preamble(program, helpers) + banner(self.name, program, configuration)
        texts = dict.fromkeys(launch.source for launch in lowering.launches)
        source = "\n".join((top, *texts))
        return replace(lowering, launches=tuple(replace(launch, source=source) for launch in lowering.launches))


WINOGRAD = Winograd()


def _tilings(program: Program) -> dict[int, Tiling]:
    """The program's tilings by m."""
    found = recognise(program)
    if isinstance(found, str):
        raise ValueError(f"program {program.name} is no convolution that winograd computes: {found}")
    return {m: Tiling(found, m) for m in found.sizes()}


def _fits(t: Tiling) -> bool:
    """Whether no smaller tile covers the outputs as well."""
    return t.m == 2 or any(s.output.extent > t.m - 2 for s in t.c.slides)


_M = Parameter("m", (), "outputs per tile and dimension; 2, or 4 where there are enough outputs and channels")
_TOO_LARGE = "a smaller tile covers the outputs as well"


# --- CPUs -----------------------------------------------------------------------------------------------------------

_TILES = "tiles_m"
"""What `contract` calls the register tiles of a work-item."""
_NO_PRODUCT = "the products' kernel does not allow it"
_PRODUCT_PARAMETERS = ("item_m", "item_n", "unroll_k", "prefetch")
"""Parameters that mean the same for the products of both forms."""


def _cpu_space(tilings: dict[int, Tiling], target: Target) -> Space:
    c = next(iter(tilings.values())).c
    lanes, registers = target.lanes(c.dtype.itemsize), target.vector_registers
    products = {m: CONTRACT.space(winograd_staged.product_program(t, target), target) for m, t in tilings.items()}
    defaults = {m: CONTRACT.default(winograd_staged.product_program(t, target), target) for m, t in tilings.items()}
    offers = {m: {p.name: p.values for p in s.parameters} for m, s in products.items()}
    first = next(iter(products.values()))
    own, rules = {p.name: p for p in first.parameters}, first.constraints

    def fits(k: Configuration) -> bool:
        rows, vectors = k.integer("item_m"), k.integer("item_n")
        return rows * vectors + vectors + 1 <= registers + registers // 8

    def reaches(k: Configuration) -> bool:
        t = tilings[k.integer("m")]
        too_tall = k.integer("item_m") * k.integer("tiles") >= 2 * t.tiles + 2
        return not too_tall and (k.integer("item_n") - 1) * lanes < c.column.extent

    def shared_out(k: Configuration) -> bool:
        panels = -(-c.column.extent // (k.integer("item_n") * lanes))
        return k["splits"] == 1 or (k["form"] == FUSED and k.integer("splits") <= panels)

    def short(k: Configuration) -> bool:
        return k.integer("item_m") * k.integer("item_n") * k.integer("unroll_k") <= 8 * registers

    def staged(k: Configuration, m: int) -> Configuration:
        return _OfProducts(defaults[m].items_, k)

    def allowed(k: Configuration, number: int) -> bool:
        m = k.integer("m")
        return k["form"] == FUSED or products[m].constraints[number].holds(staged(k, m))

    def offered(k: Configuration, name: str) -> bool:
        m = k.integer("m")
        return k["form"] == FUSED or staged(k, m)[name] in offers[m][name]

    return Space(
        (
            Parameter("form", (FUSED, STAGED), "blocks of tiles through all stages in the cache, or stage after stage"),
            replace(_M, values=tuple(tilings)),
            *(own[name] for name in _PRODUCT_PARAMETERS),
            Parameter("tiles", TILES, "register tiles per block (fused) or work-item, one below the other"),
            Parameter("splits", SPLITS, "work-items that share out the output channels of a block (fused)"),
        ),
        (
            Constraint(_TOO_LARGE, lambda k: _fits(tilings[k.integer("m")])),
            Constraint("the register tile needs more vector registers than there are", fits),
            Constraint("the tile is larger than the product", reaches),
            Constraint("only the panels of fused kernels can be shared out, each to one work-item", shared_out),
            Constraint("the inner loop would be too long to compile quickly", short),
            *(Constraint(_NO_PRODUCT, partial(offered, name=n)) for n in (*_PRODUCT_PARAMETERS, _TILES)),
            *(Constraint(f"{_NO_PRODUCT}: {r.reason}", partial(allowed, number=n)) for n, r in enumerate(rules)),
        ),
    )


@dataclass(frozen=True)
class _OfProducts(Configuration):
    """The `contract` family's configuration for the products of the staged form, on CPUs: a default with some values of
    the convolution's own, which are read when they are needed."""

    own: Configuration = field(default_factory=lambda: Configuration(()))

    def __getitem__(self, name: str) -> Value:
        if name in _PRODUCT_PARAMETERS:
            return self.own[name]
        return self.own["tiles"] if name == _TILES else super().__getitem__(name)


def _product_configuration(t: Tiling, target: Target, k: Configuration) -> Configuration:
    """The `contract` family's configuration for the products of the staged form."""
    program = winograd_staged.product_program(t, target)
    if target.shape is Shape.GPU:
        return Configuration.of({name: value for name, value in k.items() if name != "m"})
    values = {name: k[name] for name in _PRODUCT_PARAMETERS}
    return Configuration.of({**CONTRACT.default(program, target), **values, _TILES: k["tiles"]})


def _cpu_default(tilings: dict[int, Tiling], target: Target) -> Configuration:
    t = _preferred(tilings, target)
    product = CONTRACT.default(winograd_staged.product_program(t, target), target)
    values = {"form": FUSED, "m": t.m, **{name: product[name] for name in _PRODUCT_PARAMETERS}}
    space = _cpu_space({t.m: t}, target)
    cuts = (Configuration.of({**values, "tiles": n, "splits": k}) for n in TILES for k in SPLITS)
    legal = [k for k in cuts if space.violated(k) is None]
    return min(legal, key=lambda k: winograd_model.cut_cost(winograd_fused.plan_of(t, target, k)))


def _preferred(tilings: dict[int, Tiling], target: Target) -> Tiling:
    return min((t for t in tilings.values() if _fits(t)), key=lambda t: winograd_model.size_cost(t, target))


# --- GPUs -----------------------------------------------------------------------------------------------------------


def _gpu_space(tilings: dict[int, Tiling], target: Target) -> Space:
    products = {m: CONTRACT.space(winograd_staged.product_program(t, target), target) for m, t in tilings.items()}
    own = next(iter(products.values()))

    def allowed(k: Configuration, number: int) -> bool:
        return products[k.integer("m")].constraints[number].holds(k)

    def offered(k: Configuration, number: int) -> bool:
        parameter = products[k.integer("m")].parameters[number]
        return k[parameter.name] in parameter.values

    return Space(
        (replace(_M, values=tuple(tilings)), *own.parameters),
        (
            Constraint(_TOO_LARGE, lambda k: _fits(tilings[k.integer("m")])),
            *(Constraint(_NO_PRODUCT, partial(offered, number=n)) for n in range(len(own.parameters))),
            *(
                Constraint(f"{_NO_PRODUCT}: {c.reason}", partial(allowed, number=n))
                for n, c in enumerate(own.constraints)
            ),
        ),
    )


def _gpu_default(tilings: dict[int, Tiling], target: Target) -> Configuration:
    t = _preferred(tilings, target)
    return Configuration.of({"m": t.m, **CONTRACT.default(winograd_staged.product_program(t, target), target)})
