"""What a process keeps of freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from workers import heap

#: Page faults of a block of 64 MiB that is taken, written and freed: once before, and of the second time after `keep`.
SCRIPT = """
import resource
from workers import heap
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 * 1024 * 1024)[::4096] = bytes(16 * 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fresh = faults()
heap.keep()
faults()
print(fresh, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps what it likes")
def test_what_is_freed_is_not_taken_from_the_system_again() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    fresh, kept = map(int, said.split())
    assert fresh > 100 * (kept + 1)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        """Knows no `mallopt`."""

    monkeypatch.setattr("ctypes.CDLL", lambda _name: Library())
    assert not heap.keep()
