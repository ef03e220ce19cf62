"""Sees what a case touches outside its folder: an audit hook, and the kernel's count of memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

OUTSIDE = "outside"
"""Folder in a case's folder that nothing may even read."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_BY_PATH = {
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "shutil.rmtree": (0,),
}
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")


class Guard:
    """What is touched while it is armed. There is one in a process, because hooks stay."""

    def __init__(self) -> None:
        self._armed = False
        self._allowed: tuple[str, ...] = ()
        self._ports: tuple[int, ...] = ()
        self.found: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def armed(self, *allowed: Path) -> Iterator[None]:
        """Note everything that is touched outside some folders."""
        self._allowed = tuple(os.path.realpath(x) for x in allowed)
        self.found, self._armed = [], True
        try:
            yield
        finally:
            self._armed = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        # What the hook itself does must not come here again.
        self._armed = False
        try:
            problem = self._problem(event, arguments)
            if problem:
                self.found.append(problem)
        except RecursionError:
            pass  # The case is at the end of its stack.
        except Exception as error:
            self.found.append(f"{event}: {error!r}")
        finally:
            self._armed = True

    def _problem(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & _WRITING
            writes = writes or (isinstance(mode, str) and any(x in mode for x in "wax+"))
            if writes and not self._inside(path):
                return f"opened for writing: {path!r}"
            if self._planted(path):
                return f"read from outside: {path!r}"
        elif event in _BY_PATH:
            for place in _BY_PATH[event]:
                if not self._inside(arguments[place]):
                    return f"{event}: {arguments[place]!r}"
        elif event in _NEVER:
            return f"{event}: {arguments[:1]!r}"
        elif event == "socket.connect":
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else address
            if host not in ("127.0.0.1", "::1", "localhost"):
                return f"connected to {address!r}"
        return None

    def _inside(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # An open file.
        text = os.fsdecode(path)
        if text in (os.devnull, "/dev/stdout", "/dev/stderr") or text.startswith("/proc/self"):
            return True
        if "\0" in text:
            return True  # The system refuses it.
        whole = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        whole = os.path.realpath(whole) if not os.path.islink(whole) else whole
        if f"/{OUTSIDE}/" in whole:
            return False
        return any(whole == x or whole.startswith(x + os.sep) for x in self._allowed)

    def _planted(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.fsdecode(path)
        return "\0" not in text and f"/{OUTSIDE}/" in os.path.realpath(text)


def _status(name: str, process: int | str = "self") -> int:
    try:
        with open(f"/proc/{process}/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1]) >> 10
    except OSError:
        pass  # It has ended.
    return 0


def resident_mb(process: int | str = "self") -> int:
    """Memory of a process now, MB; 0 if there is none."""
    return _status("VmRSS", process)


def cpu_seconds(process: int) -> float:
    """Seconds that all threads of a process have computed for; 0 if there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def queued_seconds(process: int) -> float:
    """Seconds that all threads of a process have waited for a processor, Linux only."""
    found = 0
    for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with suppress(OSError, IndexError):  # It has ended.
            found += int(path.read_text(encoding="ascii").split()[1])
    return found / 1e9


def peak_mb() -> int:
    """The most memory since `forget_peak`, MB."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Count the peak of this process's memory from now on."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
