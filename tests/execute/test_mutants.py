"""Every mutant of a valid Program is caught: by the verifier, by the shadow map, by a differing output, or it is proven equivalent."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from npusim.errors import NpusimError
from npusim.execute.formats import Numbers
from npusim.execute.run import execute
from npusim.execute.verify import verify_program
from npusim.plan import Plan
from npusim.program import READ, SRAM, STORE, Program

from .conftest import NETWORKS, Case
from .test_run import tight

Cases = Callable[[str], Case]
MUTANTS_EACH = 80


def dependencies(program: Program) -> list[list[int]]:
    pointers, indices = program.commands.dep_ptr, program.commands.dep_idx
    return [indices[pointers[i] : pointers[i + 1]].tolist() for i in range(len(program))]


def with_dependencies(program: Program, lists: list[list[int]]) -> Program:
    pointers = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    indices = np.asarray([d for x in lists for d in sorted(set(x))], dtype=np.int64)
    return replace(program, commands=replace(program.commands, dep_ptr=pointers, dep_idx=indices))


def drop_dependency(program: Program, drawn: random.Random) -> Program:
    lists = dependencies(program)
    command = drawn.choice([i for i, x in enumerate(lists) if x])
    lists[command].remove(drawn.choice(lists[command]))
    return with_dependencies(program, lists)


def swap_dependency(program: Program, drawn: random.Random) -> Program:
    lists = dependencies(program)
    command = drawn.choice([i for i, x in enumerate(lists) if x])
    old = drawn.choice(lists[command])
    others = [i for i in range(command) if i not in lists[command]] or [old]
    lists[command][lists[command].index(old)] = drawn.choice(others)
    return with_dependencies(program, lists)


def shift_address(program: Program, drawn: random.Random) -> Program:
    buffers = program.buffers
    chosen = drawn.choice(np.flatnonzero(buffers.space == SRAM).tolist())
    address = buffers.address.copy()
    address[chosen] += drawn.choice([-64, -16, -4, -2, 2, 4, 16, 64, 256])
    return replace(program, buffers=replace(buffers, address=address))


def drop_store(program: Program, drawn: random.Random) -> Program:
    """The store vanishes; what waited for it waits for what it waited for."""
    gone = drawn.choice(np.flatnonzero(program.commands.opcode == STORE).tolist())
    lists = dependencies(program)
    spliced = [
        [d for x in lists[i] for d in (lists[gone] if x == gone else [x])]
        for i in range(len(program))
        if i != gone
    ]
    lists = [sorted({d - (d > gone) for d in x}) for x in spliced]
    keep = np.arange(len(program)) != gone
    columns = {
        name: getattr(program.commands, name)[keep]
        for name in program.commands.__slots__
        if not name.startswith("dep_")
    }
    commands = replace(program.commands, **columns)
    accesses = program.accesses
    mine = accesses.command != gone
    command = accesses.command[mine]
    moved: dict[str, Any] = {n: getattr(accesses, n)[mine] for n in accesses.__slots__}
    moved["command"] = command - (command > gone)
    return with_dependencies(replace(program, commands=commands, accesses=replace(accesses, **moved)), lists)


def move_box(program: Program, drawn: random.Random) -> Program:
    accesses = program.accesses
    offset = accesses.offset.copy()
    offset[drawn.randrange(len(offset)), drawn.choice([1, 2, 2, 3])] += drawn.choice([-8, -1, 1, 8])
    return replace(program, accesses=replace(accesses, offset=offset))


def shrink_box(program: Program, drawn: random.Random) -> Program:
    accesses = program.accesses
    shape = accesses.shape.copy()
    shape[drawn.randrange(len(shape)), drawn.choice([2, 3])] -= 1
    return replace(program, accesses=replace(accesses, shape=shape))


def redirect_access(program: Program, drawn: random.Random) -> Program:
    """A read finds its box in another buffer that holds the same box of the same tensor, or in any other."""
    accesses = program.accesses
    buffer = accesses.buffer.copy()
    reads = np.flatnonzero(accesses.mode == READ).tolist()
    buffer[drawn.choice(reads)] = drawn.randrange(len(program.buffers.tensor))
    return replace(program, accesses=replace(accesses, buffer=buffer))


MUTATIONS = (
    drop_dependency,
    swap_dependency,
    shift_address,
    drop_store,
    move_box,
    shrink_box,
    redirect_access,
)


def reaches(program: Program) -> list[int]:
    """Transitive dependencies of each command, as bit sets."""
    found: list[int] = []
    for lists in dependencies(program):
        bits = 0
        for dependency in lists:
            bits |= found[dependency] | 1 << dependency
        found.append(bits)
    return found


def proof(original: Program, mutant: Program, sram_bytes: int) -> str:
    """Why a mutant that nothing caught is equivalent to the original, or '' if there is no proof."""
    if len(mutant) == len(original):
        before, after = dependencies(original), reaches(mutant)
        implied = all(after[c] >> d & 1 for c, x in enumerate(before) for d in x)
        same_data = _same(original.accesses, mutant.accesses) and _same(original.buffers, mutant.buffers)
        if implied and same_data:
            return "every dependency of the original is still implied"
        if _same(original.accesses, mutant.accesses) and _same(original.commands, mutant.commands):
            columns = [n for n in original.buffers.__slots__ if n != "address"]
            moved = all((getattr(original.buffers, n) == getattr(mutant.buffers, n)).all() for n in columns)
            if moved and not verify_program(mutant, sram_bytes):
                return "the buffer moved to bytes that nothing else uses while it lives"
        if same_data and not verify_program(mutant, sram_bytes):
            return "every two commands that touch the same bytes are still ordered"
        if _same(original, mutant):
            return "the mutation changed nothing"
    elif len(mutant) == len(original) - 1 and _unread_store_is_gone(original, mutant):
        return "the store that is gone wrote what nothing reads"
    return ""


def _unread_store_is_gone(original: Program, mutant: Program) -> bool:
    """Whether the accesses are the same but for one store, whose box meets no read and is no output of the model."""
    a, kept = original.accesses, len(mutant.accesses.command)
    gone = np.flatnonzero(np.bincount(a.command, minlength=len(original)) == len(a.command) - kept)
    for command in gone.tolist():
        mine = a.command == command
        if not _same(a.offset[~mine], mutant.accesses.offset) or not _same(
            a.buffer[~mine], mutant.accesses.buffer
        ):
            continue
        (written,) = np.flatnonzero(mine & (a.mode != READ)).tolist()
        buffer = a.buffer[written]
        low, high = a.offset[written], a.offset[written] + a.shape[written]
        reads = (a.buffer == buffer) & (a.mode == READ)
        met = (a.offset[reads] < high).all(axis=1) & (low < a.offset[reads] + a.shape[reads]).all(axis=1)
        return not met.any() and original.tensors.kind[original.buffers.tensor[buffer]] != "output"
    return False


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if hasattr(one, "__slots__"):
        return all(_same(getattr(one, n), getattr(other, n)) for n in one.__slots__)
    return bool(one == other)


def difference(one: Any, other: Any, path: str = "") -> str:
    """Where two Programs differ, for the message of a survivor."""
    if isinstance(one, np.ndarray):
        if one.shape != other.shape:
            return f"{path}: {one.shape} {other.shape}"
        rows = np.argwhere(one != other)[:3].tolist()
        return (
            f"{path}{rows}: {[one[tuple(r)] for r in rows]} -> {[other[tuple(r)] for r in rows]}"
            if rows
            else ""
        )
    if hasattr(one, "__slots__"):
        return "; ".join(
            d for n in one.__slots__ if (d := difference(getattr(one, n), getattr(other, n), f"{path}.{n}"))
        )
    return ""


def caught(case: Case, plan: Plan, mutant: Program, numbers: Numbers, expected: dict[str, Any]) -> str:
    """What notices the mutant, or ''. Each judge is tried on its own, the cheapest first."""
    if verify_program(mutant, plan.npu.sram.sram_bytes):
        return "verifier"
    try:
        for order, seed in (("serial", 0), ("random", 1), ("random", 2)):
            found = execute(case.graph, plan, mutant, numbers, case.inputs, order=order, seed=seed)  # type: ignore[arg-type]
            if any(not np.array_equal(found[n], expected[n]) for n in expected):
                return "output"
    except (NpusimError, IndexError, ValueError, KeyError, StopIteration):
        return "executor"
    return ""


@pytest.mark.parametrize("name", NETWORKS)
def test_every_mutant_is_caught_or_proven_equivalent(cases: Cases, name: str) -> None:
    case = cases(name)
    plan, program = case.plan(sram_bytes=tight(name))
    numbers = case.numbers(plan)
    expected = execute(case.graph, plan, program, numbers, case.inputs)
    assert not verify_program(program, plan.npu.sram.sram_bytes)
    drawn = random.Random(name)
    verdicts: Counter[str] = Counter()
    for number in range(MUTANTS_EACH):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        mutant = mutation(program, drawn)
        verdict = caught(case, plan, mutant, numbers, expected) or proof(
            program, mutant, plan.npu.sram.sram_bytes
        )
        assert verdict, (
            f"mutant {number} ({mutation.__name__}) of {name} survives: {difference(program, mutant)}"
        )
        verdicts[verdict] += 1
    assert verdicts["verifier"] > MUTANTS_EACH // 3


@pytest.mark.parametrize("name", ["self_attention", "conv_silu_conv", "group_norm_skip"])
def test_the_shadow_map_alone_catches_wrong_addresses_and_lost_stores(cases: Cases, name: str) -> None:
    """No verifier, serial order: the run stops, or its result is right; it is never silently wrong.

    Not so in parallel: a command may be overwritten while it computes, which the shadow map cannot see (docs/execution.md).
    """
    case = cases(name)
    plan, program = case.plan(sram_bytes=tight(name))
    numbers = case.numbers(plan)
    expected = execute(case.graph, plan, program, numbers, case.inputs)
    drawn = random.Random(name)
    stopped = 0
    for mutation in (drop_store, shift_address) * 15:
        mutant = mutation(program, drawn)
        try:
            found = execute(case.graph, plan, mutant, numbers, case.inputs, order="serial")
        except (NpusimError, IndexError):
            stopped += 1
            continue
        assert all(np.array_equal(found[n], expected[n]) for n in expected)
    assert stopped >= 15
