"""The simulated run as Perfetto's own protobuf: a track per engine, counters for SRAM and DRAM. Times in nanoseconds.

Source: TracePacket, TrackDescriptor and TrackEvent of Perfetto's trace format.
"""

from __future__ import annotations

from typing import Any

from npusim.errors import MissingExtraError
from npusim.graph import Graph
from npusim.program import OPCODES, ROLES, Program
from npusim.trace import STALLS, Trace, sram_occupancy

PS_PER_NS = 1000
_PROCESS, _SRAM, _DRAM, _LANES = 1, 2, 3, 16
_SEQUENCE = 1


def perfetto_trace(graph: Graph, program: Program, trace: Trace, *, name: str) -> bytes:
    """A serialized `Trace`: the slices of a lane in order, none overlapping.

    Raises:
        MissingExtraError: the package `perfetto` is not installed.
    """
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto
    except ImportError as error:
        raise MissingExtraError("perfetto", "export") from error
    found = proto.Trace()
    _tracks(found, proto, program, name)
    _slices(found, proto, graph, program, trace)
    _counters(found, proto, program, trace)
    data: bytes = found.SerializeToString(deterministic=True)
    return data


def _tracks(found: Any, proto: Any, program: Program, name: str) -> None:
    """The process, a track per lane under it, two counters."""
    process = found.packet.add(trusted_packet_sequence_id=_SEQUENCE).track_descriptor
    process.uuid = _PROCESS
    process.process.pid = 1
    process.process.process_name = name
    process.child_ordering = proto.TrackDescriptor.EXPLICIT
    named = [(_LANES + i, lane) for i, lane in enumerate(program.lanes)]
    for rank, (uuid, title) in enumerate([*named, (_SRAM, "SRAM"), (_DRAM, "DRAM")]):
        track = found.packet.add(trusted_packet_sequence_id=_SEQUENCE).track_descriptor
        track.uuid, track.parent_uuid, track.name, track.sibling_order_rank = uuid, _PROCESS, title, rank
        if uuid in (_SRAM, _DRAM):
            track.counter.unit_name = "bytes" if uuid == _SRAM else "bytes/s"


def _slices(found: Any, proto: Any, graph: Graph, program: Program, trace: Trace) -> None:
    commands, lanes = program.commands, program.gang_lanes()
    names = [layer.name for layer in graph.layers]
    columns = zip(
        commands.opcode.tolist(), commands.gang.tolist(), commands.layer.tolist(), commands.role.tolist(), commands.tile.tolist(),
        trace.stall.tolist(), trace.start_ps.tolist(), trace.end_ps.tolist(), strict=True,
    )  # fmt: skip
    for index, (opcode, gang, layer, role, tile, stall, start, end) in enumerate(columns):
        for lane in lanes[gang]:
            packet = _packet(found, start)
            event = packet.track_event
            event.type, event.track_uuid, event.name = (
                proto.TrackEvent.TYPE_SLICE_BEGIN,
                _LANES + lane,
                names[layer],
            )
            event.categories.append(OPCODES[opcode])
            event.debug_annotations.add(name="command", int_value=index)
            event.debug_annotations.add(name="role", string_value=ROLES[role])
            event.debug_annotations.add(name="tile", int_value=tile)
            event.debug_annotations.add(name="waited_for", string_value=STALLS[stall])
            ended = _packet(found, end).track_event
            ended.type, ended.track_uuid = proto.TrackEvent.TYPE_SLICE_END, _LANES + lane


def _counters(found: Any, proto: Any, program: Program, trace: Trace) -> None:
    times, occupied = sram_occupancy(program, trace)
    steps = ((_SRAM, times.tolist(), occupied.tolist()), (_DRAM, *trace.bandwidth.T.tolist()))
    for uuid, when, values in steps:
        for time, value in zip(when, values, strict=True):
            event = _packet(found, time).track_event
            event.type, event.track_uuid, event.counter_value = proto.TrackEvent.TYPE_COUNTER, uuid, value


def _packet(found: Any, time_ps: int) -> Any:
    return found.packet.add(timestamp=time_ps // PS_PER_NS, trusted_packet_sequence_id=_SEQUENCE)
