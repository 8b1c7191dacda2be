"""Event files: appends framed records, one or many in one write."""

# pyright: reportAttributeAccessIssue=false
# Protocol buffers make their classes at run time.

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2

from gradscope import GradscopeError
from gradscope_integrations.tensorboard.summaries import Value, scalar_value

try:
    from crc32c import crc32c

    def masked_crc(data: bytes) -> int:
        """CRC-32C in the record format: rotated right by 15 bits, plus a constant."""
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

except ImportError:  # the same, in Python
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as masked_crc

_serial = itertools.count()
_STATE_BYTES = 2**20  # no JSON record is larger

Point = tuple[float, int, float]
"""A point of a scalar: time, step and number."""


class EventFile:
    """A file of our own. Each call is a single write, so that a killed process leaves whole records.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{next(_serial):04}"
        self._file = open(folder / name, "ab", buffering=0)
        self._good = 0  # bytes of whole records
        self._append([event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")])

    def write(self, step: int, values: Sequence[Value]) -> int:
        """Append one event, and return its size in bytes.

        Raises:
            OSError: the write failed; the file is unchanged.
        """
        return self._append([_event(step, values)])

    def write_scalars(self, tag: str, points: Iterable[Point]) -> None:
        """Append one event per point.

        Raises:
            OSError: the write failed; the file is unchanged.
        """
        self._append(_scalars(tag, points))

    def _append(self, events: Iterable[Any]) -> int:
        records = b"".join(framed(event.SerializeToString()) for event in events)
        try:
            written = self._file.write(records)
            while written < len(records):
                written += self._file.write(memoryview(records)[written:])
        except OSError:
            self._file.truncate(self._good)
            raise
        self._good += len(records)
        return len(records)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SharedWriter:
    """The user's own `SummaryWriter`, which the user closes.

    Raises:
        GradscopeError: it is not torch's `SummaryWriter`.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        if not callable(getattr(getattr(writer, "file_writer", None), "add_event", None)):
            raise GradscopeError(
                f"writer={writer!r:.80}: expected an open torch.utils.tensorboard.SummaryWriter; "
                "with another writer, leave it out: TensorBoard finds our run beside yours"
            )

    def write(self, step: int, values: Sequence[Value]) -> int:
        """Pass on one event, and return its size in bytes.

        Raises:
            RuntimeError: the writer is closed; we must not begin another file in its folder.
        """
        return self._add([_event(step, values)])

    def write_scalars(self, tag: str, points: Iterable[Point]) -> None:
        """Pass on one event per point.

        Raises:
            RuntimeError: as `write`.
        """
        self._add(_scalars(tag, points))

    def _add(self, events: Iterable[Any]) -> int:
        file_writer, size = self._writer.file_writer, 0
        if file_writer is None:
            raise RuntimeError("the SummaryWriter was closed before the scope: close the scope first")
        for event in events:
            file_writer.add_event(event, event.step, event.wall_time)  # serialises it at once
            size += event.ByteSize()
        return size

    def close(self) -> None:
        """Flush the writer."""
        if self._writer.file_writer is not None:
            self._writer.flush()


def framed(data: bytes) -> bytes:
    """A record: length, CRC of the length, data, CRC of the data."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


def last_json(folder: Path, tag: str) -> bytes | None:
    """The last JSON record of a tag in the event files of a folder, or None."""
    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        last = None
        for data in _small_records(path):
            for value in event_pb2.Event.FromString(data).summary.value if tag.encode() in data else ():
                last = value.tensor.string_val[0] if value.tag == tag else last
        if last is not None:
            return last
    return None


def _small_records(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while len(length := file.read(12)) == 12:
            size = struct.unpack("<Q", length[:8])[0]
            if size > _STATE_BYTES:
                file.seek(size + 4, os.SEEK_CUR)
            elif len(data := file.read(size + 4)) == size + 4:
                yield data[:-4]


def _event(step: int, values: Sequence[Value]) -> Any:
    return event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=values))


def _scalars(tag: str, points: Iterable[Point]) -> Iterator[Any]:
    """Yield the same event, refilled: filling one takes a tenth of the time of making one."""
    event = event_pb2.Event(summary=summary_pb2.Summary(value=[scalar_value(tag, 0.0)]))
    number = event.summary.value[0].tensor.float_val
    for point in points:
        event.wall_time, event.step, number[0] = point
        yield event
