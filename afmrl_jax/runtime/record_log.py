"""An append-only file of records, each on disk before it is acknowledged.

A record is a header (mark, length, checksum of what follows, checksum of the header) and its bytes.
The header's own checksum makes the length trustworthy, so a file that ends early was cut while its
last record was written; anything else that does not fit was damaged later, and is an error rather
than the silent loss of what follows.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import disk_full, is_disk_full, sync_folder, unwritable
from afmrl_jax.runtime.json_files import open_regular
from afmrl_jax.runtime.progress import log_info

MARK = b"AfL1"
HEADER = struct.Struct("<4sIII")
MAX_RECORD = 1 << 30
"""Bytes of the longest record."""
SECTOR = 512
"""Bytes that a disk writes at a time: after a loss of power a file may end in zeros instead."""


class RecordLog:
    """The records of a file, and more of them.

    Reading stops at a torn last record, which a killed writer leaves; the next `append` overwrites
    it.

    Args:
        path: of the file; it need not exist.
        remedy: what the user should do about damage, at the end of messages.

    Raises:
        RunError: the path is a pipe or a device, or cannot be read.
    """

    def __init__(self, path: Path, *, remedy: str):
        self.path, self._remedy = path, remedy
        self.end = 0
        """Bytes of the whole records that were read or written."""
        self.count = 0
        """How many they are."""
        self._handle: int | None = None
        self._broken = False

    def read(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of each record; to be called once, before `append`.

        Raises:
            RunError: a record is damaged; the message says which.
        """
        try:
            file = open_regular(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be read ({error.strerror}); {self._remedy}"
            ) from error
        with file:
            size = os.fstat(file.fileno()).st_size
            while self.end < size:
                found = self._next(file, size - self.end)
                if found is None:
                    log_info(
                        f"{self.path}: the last record, {self.count + 1}, was being written when "
                        "its process ended, and never acknowledged; it is left out"
                    )
                    return
                offset = self.end + HEADER.size
                self.end, self.count = offset + len(found), self.count + 1
                yield offset, found

    def _next(self, file: IO[bytes], left: int) -> bytes | None:
        """The next record; None if it is torn."""
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            return None
        mark, length, checksum, own = HEADER.unpack(head)
        if mark != MARK or own != zlib.crc32(head[:-4]) or length > MAX_RECORD:
            rest = head + file.read(left)
            if not rest.strip(b"\0"):
                return None
            raise self._damaged("its header")
        found = file.read(length)
        if len(found) < length:
            return None
        if zlib.crc32(found) != checksum:
            if left == HEADER.size + length and not found[-SECTOR:].strip(b"\0"):
                return None
            raise self._damaged("its checksum")
        return found

    def _damaged(self, what: str) -> RunError:
        return RunError(
            f"{self.path}: record {self.count + 1}, at byte {self.end}, is damaged ({what} does "
            f"not fit); {self._remedy}"
        )

    def append(self, record: bytes) -> int:
        """Write a record, and return its offset once it is on disk.

        Raises:
            RunError: the disk is full or cannot be written; then the record is not there.
        """
        if self._broken:
            raise RunError(
                f"{self.path} failed before and what is on disk is not known; start again"
            )
        if not 0 < len(record) <= MAX_RECORD:
            raise RunError(f"a record of {len(record):,} bytes; write fewer listings at a time")
        head = HEADER.pack(MARK, len(record), zlib.crc32(record), 0)[:-4]
        data = memoryview(head + struct.pack("<I", zlib.crc32(head)) + record)
        try:
            handle = self._opened()
            done = 0
            while done < len(data):
                done += os.pwrite(handle, data[done:], self.end + done)
            os.fsync(handle)
        except OSError as error:
            self._undo()
            if is_disk_full(error):
                raise disk_full(self.path) from error
            raise (unwritable(self.path, error) or error) from error
        offset = self.end + HEADER.size
        self.end, self.count = self.end + len(data), self.count + 1
        return offset

    def _opened(self) -> int:
        if self._handle is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handle = os.open(self.path, flags, 0o666)
            # What a killed writer left behind the last whole record.
            os.ftruncate(self._handle, self.end)
            sync_folder(self.path.parent)
        return self._handle

    def _undo(self) -> None:
        """Cut what was written of a failed record; after that nothing is known, so nothing more is
        written.
        """
        if self._handle is None:
            return
        try:
            os.ftruncate(self._handle, self.end)
            os.fsync(self._handle)
            if not self.end:  # There was no file before.
                self.close()
                self.path.unlink()
        except OSError:
            self._broken = True

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
