"""How an ONNX value looks into a stored tensor.

A stored tensor has four axes. Split each of them into atoms (64x64 rows, 8x40 columns): then every dimension of an ONNX value
is a sequence of atoms, a transpose permutes dimensions, and a reshape regroups atoms. Whether an operator can read a value in
place is a question of which atoms stand where. Atoms of size one do not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from npusim.graph import Part, Shape4


@dataclass(frozen=True, slots=True)
class Atom:
    """A factor of one storage axis (0 batch, 1 heads, 2 rows, 3 cols)."""

    axis: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An ONNX value as a window on stored columns.

    Attributes:
        parts: the stored columns that the value covers.
        atoms: factors of the storage axes, outermost first within each axis, axes ascending.
        dims: for each dimension of the ONNX value, indices into `atoms`, outermost first.
    """

    parts: tuple[Part, ...]
    atoms: tuple[Atom, ...]
    dims: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the ONNX value."""
        return tuple(prod(self.atoms[i].size for i in dim) for dim in self.dims)

    @property
    def storage_shape(self) -> Shape4:
        """`[batch, heads, rows, cols]` that the atoms multiply to."""
        sizes = [prod(a.size for a in self.atoms if a.axis == axis) for axis in range(4)]
        return (sizes[0], sizes[1], sizes[2], sizes[3])

    def axis_atoms(self, axis: int) -> tuple[int, ...]:
        """Indices of the atoms of one storage axis, outermost first."""
        return tuple(i for i, a in enumerate(self.atoms) if a.axis == axis)

    def on(self, tensor: str) -> View:
        """The same view of another tensor with the same storage."""
        return replace(self, parts=(Part(tensor, 0, self.storage_shape[3]),))


Groups = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def stored(tensor: str, shape: Sequence[int], groups: Groups) -> View:
    """The view of a tensor whose storage axes hold the given dimensions of an ONNX shape.

    `groups[a]` lists the dimensions of the value that make up storage axis `a`; every dimension stands once.
    """
    atoms: list[Atom] = []
    dims: list[tuple[int, ...]] = [()] * len(shape)
    for axis, group in enumerate(groups):
        for dim in group:
            if shape[dim] != 1:
                dims[dim] = (len(atoms),)
                atoms.append(Atom(axis, shape[dim]))
    cols = prod(shape[d] for d in groups[3])
    return View(parts=(Part(tensor, 0, cols),), atoms=tuple(atoms), dims=tuple(dims))


def default_groups(rank: int, *, image: bool) -> Groups:
    """Where the dimensions of a value of this rank are stored when nothing else decides: channels last for images."""
    if image and rank >= 3:
        return ((0,), (), tuple(range(2, rank)), (1,))
    if rank == 0:
        return ((), (), (), ())
    if rank >= 3:
        return ((0,), (), tuple(range(1, rank - 1)), (rank - 1,))
    return ((), (), tuple(range(rank - 1)), (rank - 1,))


def is_arranged(view: View, groups: Groups) -> bool:
    """Whether the storage axes already hold exactly these dimensions, in this order."""
    return all(
        view.axis_atoms(axis) == tuple(atom for dim in group for atom in view.dims[dim])
        for axis, group in enumerate(groups)
    )


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """The value reshaped, or None where that would mix atoms up."""
    if prod(shape) != prod(view.shape):
        return None
    atoms = list(view.atoms)
    queue = [i for dim in view.dims for i in dim]
    dims: list[tuple[int, ...]] = []
    for size in shape:
        taken: list[int] = []
        while size > 1:
            if not queue:
                return None
            head = queue[0]
            have = atoms[head].size
            if size % have == 0:
                taken.append(queue.pop(0))
                size //= have
            elif have % size == 0:
                atoms, queue, taken, dims = _split(atoms, head, size, queue, taken, dims)
                taken.append(queue.pop(0))
                size = 1
            else:
                return None
        dims.append(tuple(taken))
    return replace(view, atoms=tuple(atoms), dims=tuple(dims))


def _split(
    atoms: list[Atom], index: int, outer: int, queue: list[int], taken: list[int], dims: list[tuple[int, ...]]
) -> tuple[list[Atom], list[int], list[int], list[tuple[int, ...]]]:
    """Split one atom into `outer` x rest; later indices move up by one."""
    atom = atoms[index]
    split = [*atoms[:index], Atom(atom.axis, outer), Atom(atom.axis, atom.size // outer), *atoms[index + 1 :]]

    def shift(indices: Iterable[int]) -> list[int]:
        return [i + 1 if i > index else i for i in indices]

    moved = shift(queue)
    return split, [moved[0], moved[0] + 1, *moved[1:]], shift(taken), [tuple(shift(d)) for d in dims]


def transpose(view: View, permutation: Sequence[int]) -> View:
    """The value with its dimensions permuted."""
    return replace(view, dims=tuple(view.dims[p] for p in permutation))


def slice_cols(view: View, dim: int, start: int, size: int) -> View | None:
    """Elements `[start, start + size)` of one dimension, if that dimension is the outer part of the columns; else None."""
    cols = view.axis_atoms(3)
    chosen = view.dims[dim]
    if not chosen or cols[: len(chosen)] != chosen:
        return None
    inner = prod(view.atoms[i].size for i in cols[len(chosen) :])
    parts = _slice_parts(view.parts, start * inner, size * inner)
    gone = set(chosen)
    kept = [i for i in range(len(view.atoms)) if i not in gone]
    first = chosen[0]
    order = sorted([*kept, *([first] if size > 1 else [])])
    atoms = tuple(Atom(3, size) if i == first else view.atoms[i] for i in order)
    renumber = {old: new for new, old in enumerate(order)}
    dims = tuple(
        ((renumber[first],) if size > 1 else ()) if d == dim else tuple(renumber[i] for i in indices)
        for d, indices in enumerate(view.dims)
    )
    return View(parts=parts, atoms=atoms, dims=dims)


def _slice_parts(parts: Sequence[Part], start: int, size: int) -> tuple[Part, ...]:
    chosen, position = [], 0
    for part in parts:
        low, high = max(start, position), min(start + size, position + part.size)
        if low < high:
            chosen.append(Part(part.tensor, part.start + low - position, high - low))
        position += part.size
    return tuple(chosen)


def concat_cols(views: Sequence[View], dim: int) -> View | None:
    """The values joined along one dimension, if it is all of the columns and all else agrees; else None."""
    rest = None
    for view in views:
        if view.dims[dim] != view.axis_atoms(3):
            return None
        others = [[view.atoms[i] for i in indices] for d, indices in enumerate(view.dims) if d != dim]
        layout = [a for a in view.atoms if a.axis != 3]
        if rest is not None and rest != (others, layout):
            return None
        rest = (others, layout)
    first = views[0]
    keep = [i for i, a in enumerate(first.atoms) if a.axis != 3]  # the columns' atoms are the last ones
    total = sum(v.storage_shape[3] for v in views)
    dims = tuple((len(keep),) if d == dim else indices for d, indices in enumerate(first.dims))
    atoms = (*(first.atoms[i] for i in keep), Atom(3, total))
    return View(parts=tuple(p for v in views for p in v.parts), atoms=atoms, dims=dims)


def signature(view: View) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """Per dimension, where it lies in storage: `(axis, size, stride)` runs, adjacent atoms merged."""
    strides: dict[int, int] = {}
    for axis in range(4):
        step = 1
        for i in reversed(view.axis_atoms(axis)):
            strides[i] = step
            step *= view.atoms[i].size
    result = []
    for dim in view.dims:
        runs: list[tuple[int, int, int]] = []
        for i in dim:
            atom, stride = view.atoms[i], strides[i]
            if runs and runs[-1][0] == atom.axis and runs[-1][2] == stride * atom.size:
                runs[-1] = (atom.axis, runs[-1][1] * atom.size, stride)
            else:
                runs.append((atom.axis, atom.size, stride))
        result.append(tuple(runs))
    return tuple(result)


def congruent(view: View, other: View) -> bool:
    """Whether `other`, broadcast against `view` by ONNX rules, meets it element by element in storage."""
    rank = len(view.dims)
    if len(other.dims) > rank:
        return False
    whole, part = signature(view), signature(other)
    offset = rank - len(other.dims)
    if any(runs and runs != whole[offset + d] for d, runs in enumerate(part)):
        return False
    return all(o in (1, s) for o, s in zip(other.storage_shape, view.storage_shape, strict=True))
