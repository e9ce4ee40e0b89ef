"""What the grid trains and what it compares: cells, comparisons and tables, as data. Nothing here imports torch.

Source of rows, comparisons and the paper's figures: Castells et al. 2024 (EdgeFusion), section 3 and supplement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from npusim.errors import BadInputError

Kind = Literal["teacher", "init", "kd", "lcm"]

BETTER, PLAIN = "teacher", "teacher-plain"
"""The run's own teacher, and one of the same architecture that knows L-orig only. Both share text encoder and autoencoder."""

VARIANTS = ("L-orig", "L-pp", "L-pps", "synt", "synt-half", "synt-cur", "L-pps+synt", "L-pps+synt-cur")
"""Data (`variants.py`): as found, cleaned, recaptioned; drawn by the teacher, its first half, that half curated; unions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One network to train: how, from which networks, on what.

    teacher, student: names of cells, or stages of the run. data: a variant; empty where nothing is trained.
    """

    name: str
    kind: Kind
    teacher: str = ""
    student: str = ""
    data: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the cells or stages whose networks this one takes."""
        return tuple(name for name in (self.teacher, self.student) if name)


def _kd(data: str, teacher: str = BETTER) -> Cell:
    """A student of stage 1: from the weights that block removal leaves of its teacher."""
    name = f"kd-{data}" if teacher == BETTER else f"kd-plain-{data}"
    student = "bk-init" if teacher == BETTER else "bk-init-plain"
    return Cell(name=name, kind="kd", teacher=teacher, student=student, data=data)


def _lcm(student: str, data: str, teacher: str = BETTER, name: str = "") -> Cell:
    """A student of stage 2."""
    return Cell(name=name or f"lcm-{data}", kind="lcm", teacher=teacher, student=student, data=data)


_EDGEFUSION = "L-pps+synt"

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell(name=PLAIN, kind="teacher", data="L-orig"),
        Cell(name="bk-init-plain", kind="init", teacher=PLAIN),
        _kd("L-orig", PLAIN),
        *(_kd(data) for data in ("L-orig", "synt-cur", "synt-half", "L-pps+synt", "synt", "L-pp", "L-pps")),
        _lcm("kd-synt-cur", _EDGEFUSION, name="lcm-edgefusion"),
        _lcm("kd-plain-L-orig", _EDGEFUSION, name="lcm-old-student"),
        _lcm("kd-synt-cur", _EDGEFUSION, teacher="kd-synt-cur", name="lcm-small-teacher"),
        *(
            _lcm(f"kd-{d}", d)
            for d in ("L-orig", "synt-cur", "synt-half", "synt", "L-pps+synt", "L-pp", "L-pps")
        ),
        _lcm("bk-init", _EDGEFUSION, name="lcm-no-stage-1"),
        _kd("L-pps+synt-cur"),
        _lcm("kd-L-pps+synt-cur", "L-pps+synt-cur"),
    )
}
"""In the order in which they are trained: a budget that ends early leaves the paper's claims before its remaining rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`ours` minus `rival` over the same prompts and noise: one cell of each, one claim of the paper."""

    claim: str
    ours: str
    rival: str
    paper: str
    """What the paper found, as it prints it."""


COMPARISONS: tuple[Comparison, ...] = (
    Comparison(
        claim="a better teacher (KD)",
        ours="kd-L-orig",
        rival="kd-plain-L-orig",
        paper="CLIP 0.266 to 0.278, IS 30.39 to 32.11, FID 17.43 to 21.66",
    ),
    Comparison(claim="cleaned data (KD)", ours="kd-L-pp", rival="kd-L-orig", paper="CLIP 0.278 both"),
    Comparison(claim="recaptioned data (KD)", ours="kd-L-pps", rival="kd-L-pp", paper="CLIP 0.278 to 0.283"),
    Comparison(
        claim="synthetic data added (KD)", ours="kd-L-pps+synt", rival="kd-L-pps", paper="CLIP 0.283 to 0.288"
    ),
    Comparison(claim="cleaned data (LCM)", ours="lcm-L-pp", rival="lcm-L-orig", paper="CLIP 0.254 both"),
    Comparison(
        claim="recaptioned data (LCM)", ours="lcm-L-pps", rival="lcm-L-pp", paper="CLIP 0.254 to 0.266"
    ),
    Comparison(
        claim="synthetic data added (LCM)",
        ours="lcm-L-pps+synt",
        rival="lcm-L-pps",
        paper="CLIP 0.266 to 0.276",
    ),
    Comparison(
        claim="curation alone (KD)",
        ours="kd-synt-cur",
        rival="kd-synt-half",
        paper="CLIP 0.285 both, IS 33.37 to 32.54",
    ),
    Comparison(
        claim="curation alone (LCM)",
        ours="lcm-synt-cur",
        rival="lcm-synt-half",
        paper="CLIP 0.270 to 0.269 at 4 steps, 0.265 both at 2",
    ),
    Comparison(
        claim="quality before quantity (KD)",
        ours="kd-synt-cur",
        rival="kd-synt",
        paper="IS 35.11 to 35.67, CLIP 0.288 to 0.287",
    ),
    Comparison(
        claim="quality before quantity (LCM)",
        ours="lcm-synt-cur",
        rival="lcm-synt",
        paper="IS 28.23 to 27.87, CLIP 0.272 to 0.270",
    ),
    Comparison(
        claim="LCM on the larger union, same student",
        ours="lcm-edgefusion",
        rival="lcm-synt-cur",
        paper="IS 27.87 to 28.78, CLIP 0.270 to 0.272",
    ),
    Comparison(
        claim="stage 1 on new data before LCM",
        ours="lcm-edgefusion",
        rival="lcm-old-student",
        paper="CLIP 0.262 to 0.272, IS 26.11 to 28.78",
    ),
    Comparison(
        claim="stage 1 before LCM against none",
        ours="lcm-edgefusion",
        rival="lcm-no-stage-1",
        paper="not in the paper",
    ),
    Comparison(
        claim="the large teacher against a student-shaped one",
        ours="lcm-edgefusion",
        rival="lcm-small-teacher",
        paper="stated, no figures",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a table: a label as the paper's, a cell or stage of the run, and its number of sampling steps."""

    label: str
    cell: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of the paper, by what it holds."""

    name: str
    title: str
    rows: tuple[Row, ...]


_LCM_ROWS = (
    ("no stage 1 on new data; L-pps+synt", "lcm-old-student"),
    *((f"{data}; {data}", f"lcm-{data}") for data in ("L-orig", "L-pp", "L-pps", _EDGEFUSION)),
    ("L-pps+synt-cur; L-pps+synt-cur", "lcm-L-pps+synt-cur"),
    *((f"{data}; {data}", f"lcm-{data}") for data in ("synt", "synt-cur")),
    ("synt-cur; L-pps+synt (EdgeFusion)", "lcm-edgefusion"),
    ("no stage 1 at all; L-pps+synt", "lcm-no-stage-1"),
    ("EdgeFusion, student-shaped teacher", "lcm-small-teacher"),
)


def _counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def tables(teacher_steps: int, student_steps: Iterable[int]) -> tuple[Table, ...]:
    """The tables for these step counts (the paper's: 25 for teachers and KD; 4, 2, 1 for LCM)."""
    few = tuple(student_steps)
    many, kd = teacher_steps, ("L-orig", "L-pp", "L-pps", _EDGEFUSION, "L-pps+synt-cur", "synt", "synt-cur")
    curation = [Row(label=f"KD, {d}", cell=f"kd-{d}", steps=many) for d in ("synt-half", "synt-cur")]
    curation += [
        Row(label=f"LCM, {d}, {_counted(n)}", cell=f"lcm-{d}", steps=n)
        for n in few
        for d in ("synt-half", "synt-cur")
    ]
    return (
        Table(
            name="teachers",
            title="Teachers",
            rows=(
                Row(label="plain (knows L-orig)", cell=PLAIN, steps=many),
                Row(label="better (the run's own)", cell=BETTER, steps=many),
            ),
        ),
        Table(
            name="kd",
            title="KD: teacher; data",
            rows=(
                Row(label="plain; L-orig", cell="kd-plain-L-orig", steps=many),
                *(Row(label=f"better; {data}", cell=f"kd-{data}", steps=many) for data in kd),
            ),
        ),
        *(
            Table(
                name=f"lcm-{steps}",
                title=f"LCM, {_counted(steps)}: student's data; LCM's data",
                rows=tuple(Row(label=label, cell=cell, steps=steps) for label, cell in _LCM_ROWS),
            )
            for steps in few
        ),
        Table(
            name="curation", title="Curation alone: the same pictures before and after", rows=tuple(curation)
        ),
        Table(
            name="steps",
            title="EdgeFusion by number of steps",
            rows=tuple(Row(label=_counted(n), cell="lcm-edgefusion", steps=n) for n in few),
        ),
    )


LEANS_ON = {"L-orig": ("L-pp",), "synt": ("synt-half", "synt-cur")}
"""Variants that would be made from another crawl, or without knowing what was asked for, if only the first were the user's."""


def given_variants(words: Iterable[str]) -> dict[str, Path]:
    """`NAME=FOLDER` as a table.

    Raises:
        BadInputError: not of that form, no such variant, or one whose followers are not given.
    """
    table: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not folder or name not in VARIANTS:
            raise BadInputError(
                f"--variant {word}: write NAME=FOLDER with NAME one of {', '.join(VARIANTS)} and FOLDER an imagefolder"
            )
        table[name] = Path(folder)
    for name, followers in LEANS_ON.items():
        missing = [follower for follower in followers if name in table and follower not in table]
        if missing:
            raise BadInputError(
                f"--variant {name}: give {' and '.join(missing)} too; the grid cannot make them from your {name}"
            )
    return table


def chosen(patterns: Iterable[str]) -> list[Cell]:
    """The cells that match these names or patterns (`kd-*`), with all that they need, in the grid's order.

    Raises:
        BadInputError: a pattern matches no cell.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        found = {name for name in CELLS if fnmatch(name, pattern)}
        if not found:
            raise BadInputError(
                f"--cells {pattern}: matches no cell of the grid; there are {', '.join(CELLS)} (patterns such as 'kd-*' too)"
            )
        wanted |= found
    open_ = list(wanted)
    while open_:
        for need in CELLS[open_.pop()].needs:
            if need in CELLS and need not in wanted:
                wanted.add(need)
                open_.append(need)
    return [cell for name, cell in CELLS.items() if name in wanted]
