"""Where a task's memory goes: with `TRACE_MEMORY=1` one log line after each task, while somebody looks for a leak.

Traced is what Python allocates, which costs time and memory. What a library in C holds, like Pillow's pixels, is
seen in the resident size alone.
"""

from __future__ import annotations

import logging
import resource
import tracemalloc
from pathlib import Path
from typing import Any

from celery import signals

logger = logging.getLogger(__name__)

#: Lines of code that are named.
SHOWN = 3
_OURS = (
    tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__),
    tracemalloc.Filter(inclusive=False, filename_pattern=__file__),
)
#: What this process held when its task began.
_before: list[tracemalloc.Snapshot] = []


def watch() -> None:
    """Trace the tasks of the processes that are forked from this one."""
    signals.task_prerun.connect(begin, weak=False)
    signals.task_postrun.connect(tell, weak=False)


def begin(**_: Any) -> None:
    """Take down what is held before the task runs."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    _before[:] = [tracemalloc.take_snapshot().filter_traces(_OURS)]
    tracemalloc.reset_peak()


def tell(**_: Any) -> None:
    """Log the peak, what is held still, and the lines that hold most of it."""
    if not _before:
        return
    peak = tracemalloc.get_traced_memory()[1]
    before = _before.pop()
    after = tracemalloc.take_snapshot().filter_traces(_OURS)
    held = sum(trace.size for trace in before.traces)
    grown = [change for change in after.compare_to(before, "lineno") if change.size_diff > 0][:SHOWN]
    lines = ", ".join(
        f"{Path(change.traceback[0].filename).name}:{change.traceback[0].lineno} {change.size_diff / 1024:.0f} KiB"
        for change in grown
    )
    logger.info(
        "memory: %.0f KiB at the peak, %.0f KiB kept (most by %s), %.0f MiB resident",
        max(0, peak - held) / 1024,
        (sum(trace.size for trace in after.traces) - held) / 1024,
        lines or "nothing",
        resident_bytes() / 1024**2,
    )


def resident_bytes() -> int:
    """This process's memory, libraries in C included."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
