"""The append-only log: what is acknowledged is there, what was torn is not, damage is named."""

import errno
import os

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.record_log import HEADER, RecordLog

REMEDY = "restore it"


def opened(path):
    return RecordLog(path, remedy=REMEDY)


def read(path):
    return [record for _, record in opened(path).read()]


@pytest.fixture
def path(tmp_path):
    log = opened(tmp_path / "log")
    for record in (b"one", b"two" * 500, b"three"):
        log.append(record)
    log.close()
    return tmp_path / "log"


RECORDS = [b"one", b"two" * 500, b"three"]


def test_records_come_back_in_order_and_more_follow(path):
    log = opened(path)
    assert [x for _, x in log.read()] == RECORDS
    offset = log.append(b"four")
    assert path.read_bytes()[offset:] == b"four"
    assert read(path) == [*RECORDS, b"four"]


def test_no_file_is_no_record(tmp_path):
    assert read(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_cut_anywhere_only_the_last_record_is_lost(path, capsys):
    data = path.read_bytes()
    last = len(data) - len(RECORDS[-1]) - HEADER.size
    for end in range(last + 1, len(data)):
        path.write_bytes(data[:end])
        assert read(path) == RECORDS[:2]
    assert "never acknowledged" in capsys.readouterr().err
    log = opened(path)
    assert len(list(log.read())) == 2
    log.append(b"next")
    assert read(path) == [*RECORDS[:2], b"next"]


def test_zeros_that_a_loss_of_power_leaves_are_torn_too(path):
    data = path.read_bytes()
    path.write_bytes(data + bytes(3000))
    assert read(path) == RECORDS
    long = opened(path)
    list(long.read())
    long.append(b"x" * 2000)
    whole = path.read_bytes()
    path.write_bytes(whole[:-700] + bytes(700))
    assert read(path) == RECORDS


@pytest.mark.parametrize("place", ["mark", "length", "header", "record", "last"])
def test_a_changed_byte_is_named_and_never_a_silent_loss(path, place):
    data = bytearray(path.read_bytes())
    first = HEADER.size + len(RECORDS[0])
    last = len(data) - 1
    at = {"mark": first, "length": first + 7, "header": first + 13, "record": first + 100}
    data[at.get(place, last)] ^= 0x40
    path.write_bytes(data)
    number = 3 if place == "last" else 2
    with pytest.raises(RunError, match=f"record {number}, at byte .* is damaged .*; restore it"):
        read(path)


def test_every_changed_bit_of_a_header_is_damage(path):
    data = path.read_bytes()
    first = HEADER.size + len(RECORDS[0])
    for bit in range(8 * HEADER.size):
        changed = bytearray(data)
        changed[first + bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(RunError, match="record 2"):
            read(path)


def test_a_full_disk_leaves_the_log_as_it_was(path, monkeypatch):
    log = opened(path)
    list(log.read())
    real = os.pwrite

    def full(handle, data, offset):
        if len(data) > 20:
            return real(handle, data[:20], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="no space left"):
        log.append(b"more than fits")
    monkeypatch.undo()
    assert read(path) == RECORDS
    log.append(b"fits now")
    assert read(path) == [*RECORDS, b"fits now"]


def test_a_full_disk_leaves_no_empty_log(path, monkeypatch):
    path.unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    log = opened(path)
    with pytest.raises(RunError, match="no space left"):
        log.append(b"more than fits")
    assert not path.exists()
    monkeypatch.undo()
    log.append(b"fits now")
    assert read(path) == [b"fits now"]


def test_a_log_is_no_link_and_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="pipe"):
        read(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="cannot be written"):
        opened(tmp_path / "link").append(b"x")
    assert not (tmp_path / "elsewhere").exists()
