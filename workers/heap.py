"""What a process keeps of the memory that one image took, for the next one.

An image is a few blocks of 10 to 100 MiB. The C library takes blocks above 32 MiB at most from the system each time
anew and gives them back at once, and Linux clears every page of them at its first use: 35 000 page faults for a WebP of
12 megapixels, which are a third of its CPU time.
"""

from __future__ import annotations

import ctypes

#: Bytes that stay with the process: more than the largest image that is let in takes, 430 MiB. Where a result is as
#: large it can be 730, and once more than this is free at the end of the heap, glibc gives all of that back.
KEPT = 640 * 1024 * 1024
#: glibc's `mallopt(3)`: M_TRIM_THRESHOLD, M_MMAP_MAX.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep() -> bool:
    """Let this process and those that it forks keep freed memory, up to `KEPT` at the end of the heap.

    The most that a process takes stays nearly what it was. Musl and other systems' C libraries have no such settings.

    Returns:
        Whether the C library knows them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Not M_MMAP_THRESHOLD: older versions take no more than 32 MiB for it. A mapping is always given back.
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, KEPT))
