"""One statement with all sizes known around it: extents of its indices, broadcasting of whole tensors, typed value."""

from __future__ import annotations

from tilewright.dsl import syntax
from tilewright.dsl.affine import Affine
from tilewright.dsl.diagnostics import Problem, counted
from tilewright.dsl.environment import Dim, Environment
from tilewright.dsl.expressions import Builder, Frame, reduces, renamed_apart
from tilewright.dsl.program import Expr, Index, Statement, children
from tilewright.dsl.sizes import Extents, OpenIndex
from tilewright.dsl.syntax import Access, Application, Assignment, Name, Node, Reduction
from tilewright.dsl.values import Value
from tilewright.dsl.vocabulary import SCANS

MAX_DEPTH = 150
"""Most levels of one statement's expression, conversions included: what passes over Programs can walk."""


def build(environment: Environment, s: Assignment) -> list[Statement]:
    """The Program's statements for one assignment, the last one its own; targets become tensors of the environment."""
    work = _Build(environment, s)
    own = work.statement()
    return [*work.kept, own]


class _Build(Builder):
    """Builds one statement."""

    def __init__(self, work: Environment, s: Assignment) -> None:
        super().__init__(work, s)
        self.reduced: tuple[Dim, ...] = ()
        """What whole reductions reduce to: the declared shape of the target, else a single element."""
        self.frame: Frame | None = None
        """The target's own positions in the short form."""

    def statement(self) -> Statement:
        target = self.s.target.text
        declared = self.work.declared_dims(target)
        indices = self._whole(declared) if self.s.indices is None else self._element(declared)
        # bind the target's sizes first: the value may use them as numbers
        shape = tuple(i.extent for i in indices)
        declaration = self.work.declared.get(target)
        if declaration is not None:
            self.work.bind_dims(declaration, shape)
            self.work.solve_equations()
        value = self.value(self.s.value, self.frame)
        stored = self.work.store(target, shape, value)
        if any(_deeper(e, MAX_DEPTH) for e in (stored, *(k.value for k in self.kept))):
            raise Problem(
                self.s.target.at, f"the value of {target} is nested too deeply; assign a part of it to an intermediate"
            )
        return Statement(target, indices, renamed_apart(stored, self.taken | self.extents.keys()))

    # --- extents ---

    def _solve(self, left: list[OpenIndex]) -> None:
        """Find the extents of all indices that the text names."""
        wanted = list(left)
        twins = {}
        for r in self.reductions():
            for b in r.indices:
                name = syntax.bound_name(b)
                if r.kind.text in SCANS and isinstance(b.extent, Name):
                    twins[name.text] = b.extent.text
                else:
                    wanted.append(OpenIndex(name.text, b.extent, None, "", name.at))
        nodes = list(syntax.walk(self.s.value))
        inside = {id(n.args[0]) for n in nodes if isinstance(n, Application) and n.function == "inside"}
        accesses = []
        for n in nodes:
            if isinstance(n, Access) and id(n) not in inside:
                tensor = self.work.tensors[n.tensor.text]
                if len(n.index) != len(tensor.shape):
                    raise self.work.error(
                        f"{tensor.name} has the shape {list(tensor.shape)} but is read with "
                        f"{counted(len(n.index), 'index')}"
                    )
                accesses.append(n)
        shapes = {name: t.shape for name, t in self.work.tensors.items()}
        self.extents = Extents(self.work.sizes, wanted, twins).solve(accesses, shapes)

    def _element(self, declared: tuple[int | None, ...] | None) -> tuple[Index, ...]:
        names, left = [], []
        for d, b in enumerate(self.s.indices or ()):
            place = f"dimension {d} of {self.s.target.text}"
            size = None if declared is None else declared[d]
            if isinstance(b.value, Name):
                names.append(b.value.text)
                left.append(OpenIndex(b.value.text, b.extent, size, place, b.value.at))
            else:
                if size not in (None, 1):
                    raise self.work.error(f"{place} has size {size}, but the statement assigns place 0 only")
                names.append(self.fresh("o"))
                self.extents[names[-1]] = 1
        fixed = dict(self.extents)
        self._solve(left)
        self.extents |= fixed
        return tuple(Index(n, self.extents[n]) for n in names)

    def _whole(self, declared: tuple[int | None, ...] | None) -> tuple[Index, ...]:
        self._solve([])
        if declared is not None and None not in declared:
            self.reduced = self._labelled(tuple(n for n in declared if n is not None))
        found = self.shape(self.s.value)
        target = found if declared is None else self._filled(declared, found)
        self._check_fits(found, target)
        names = [self.fresh("i", d) for d in range(len(target))]
        self.extents |= {n: d.size for n, d in zip(names, target, strict=True)}
        self.frame = Frame(tuple(map(Affine.index, names)), tuple(d.size for d in target))
        return tuple(Index(n, d.size) for n, d in zip(names, target, strict=True))

    def _filled(self, declared: tuple[int | None, ...], found: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """The target's shape: as declared, sizes that are not known yet from the value."""
        if None in declared and len(declared) != len(found):
            raise self.work.error(
                f"{self.s.target.text} should have {counted(len(declared), 'dimension')}, but its value has the shape "
                f"{_sizes(found)}"
            )
        aligned = (Dim(1),) * (len(declared) - len(found)) + found
        aligned = aligned[len(aligned) - len(declared) :]
        return self._labelled(tuple(f.size if d is None else d for d, f in zip(declared, aligned, strict=True)))

    def _labelled(self, sizes: tuple[int, ...]) -> tuple[Dim, ...]:
        dims = self.work.declared[self.s.target.text].dims or ()
        return tuple(Dim(n, d.text if isinstance(d, Name) else None) for n, d in zip(sizes, dims, strict=True))

    def _check_fits(self, value: tuple[Dim, ...], target: tuple[Dim, ...]) -> None:
        aligned = target[len(target) - len(value) :] if len(value) <= len(target) else None
        if aligned is None or any(v.size not in (1, t.size) for v, t in zip(value, aligned, strict=True)):
            raise self.work.error(
                f"a value of shape {_sizes(value)} does not fit {self.s.target.text} of shape {_sizes(target)}; "
                "sum(...) or another reduction brings it down to that shape"
            )

    # --- shapes of the short form ---

    def shape(self, node: Node) -> tuple[Dim, ...]:
        """Shape of a part of a short-form statement, by broadcasting."""
        match node:
            case Name() if node.text in self.work.tensors:
                return self.work.dims[node.text]
            case Application() if reduces(node):
                return self.reduced
            case Application() if node.function not in ("inside", "index"):
                result: tuple[Dim, ...] = ()
                for a in node.args:
                    result = self._broadcast(result, self.shape(a), node)
                return result
            case Reduction():
                return self.shape(node.body)
            case _:
                return ()

    def _broadcast(self, a: tuple[Dim, ...], b: tuple[Dim, ...], node: Node) -> tuple[Dim, ...]:
        rank = max(len(a), len(b))
        one = Dim(1)
        result = []
        for p, q in zip((one,) * (rank - len(a)) + a, (one,) * (rank - len(b)) + b, strict=True):
            if p.size != q.size and 1 not in (p.size, q.size):
                raise self.work.error(
                    f"shapes {_sizes(a)} and {_sizes(b)} do not broadcast in {syntax.node_text(node)[:80]}"
                )
            wide = p if q.size == 1 and p.size != 1 else q
            result.append(Dim(wide.size, wide.label or (p.label if p.size == q.size else None)))
        return tuple(result)

    def whole_reduction(self, node: Application) -> Value:
        """`sum(x)`: over the dimensions of its argument that the target lacks or has with size 1."""
        arg = node.args[0]
        dims, target = self.shape(arg), self.reduced
        kept = self._alignment(dims, target, node)
        positions, indices = [], []
        for d, place in zip(dims, kept, strict=True):
            if place is not None and target[place].size == d.size:
                positions.append(Affine.index(self._target_index(place)))
            elif place is not None and d.size == 1:
                positions.append(Affine())
            elif place is None or target[place].size == 1:
                indices.append(Index(self.fresh("k"), d.size))
                self.extents[indices[-1].name] = d.size
                positions.append(Affine.index(indices[-1].name))
            else:
                raise self.work.error(
                    f"{syntax.node_text(node)[:80]}: shape {_sizes(dims)} cannot be reduced to {_sizes(target)}"
                )
        if not indices and target and len(target) >= len(dims) and all(t.size != 1 for t in target):
            raise self.work.error(
                f"{syntax.node_text(node)[:80]} has nothing to reduce: {self.s.target.text} has the full shape "
                f"{_sizes(target)}; assign the reduction to an output or intermediate of its own"
            )
        body = self.value(arg, Frame(tuple(positions), tuple(d.size for d in dims)))
        return self.reduce(node.function, tuple(indices), body)

    def _target_index(self, place: int) -> str:
        assert self.frame is not None
        return self.frame.positions[place].names[0]

    def _alignment(self, dims: tuple[Dim, ...], target: tuple[Dim, ...], node: Node) -> list[int | None]:
        """For each dimension of a reduction's argument the target's dimension it belongs to, None for none.

        By name where the target has fewer dimensions and the header names them all; else from the right.
        """
        labels, wanted = [d.label for d in dims], [t.label for t in target]
        if len(target) < len(dims) and None not in wanted and all(labels.count(w) == 1 for w in wanted):
            return [wanted.index(label) if label in wanted else None for label in labels]
        shift = len(target) - len(dims)
        result = [d + shift if d + shift >= 0 else None for d in range(len(dims))]
        for d, place in zip(dims, result, strict=True):
            other = None if place is None else target[place]
            differ = other is not None and d.label and other.label and d.label != other.label
            if other is not None and differ and 1 not in (d.size, other.size):
                raise self.work.error(
                    f"{syntax.node_text(node)[:80]}: size {d.label} of its argument would become {other.label} of "
                    f"{self.s.target.text}; write this reduction with indices"
                )
        return result


def _sizes(dims: tuple[Dim, ...]) -> str:
    return str([d.size for d in dims])


def _deeper(e: Expr, limit: int) -> bool:
    stack = [(e, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > limit:
            return True
        stack.extend((c, depth + 1) for c in children(node))
    return False
