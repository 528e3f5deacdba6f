"""The image queue's tasks."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, NoReturn

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded

from queues.topology import QUEUES, TaskSpec
from workers import imaging
from workers.settings import image_root
from workers.storage import LocalStorage
from workers.task import register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Seconds between two progress reports; each costs a write to the result store.
PROGRESS_INTERVAL = 0.5
#: How far processes that do nothing but calculate step back, within their own container where they run in one.
NICENESS = 10

storage = LocalStorage(image_root())


@signals.worker_process_init.connect(weak=False)
def step_back(**_: Any) -> None:
    """Let the main process, which acknowledges and fetches the next message, have a core as soon as it wants one."""
    os.nice(NICENESS)


class Watch:
    """Reports progress, and ends what takes longer than its size explains."""

    def __init__(self, task: Any, spec: TaskSpec) -> None:
        self._task, self._spec = task, spec
        self._reported = time.monotonic()

    def begin(self, megapixels: float) -> None:
        """The headers are read: from now on the limit of the size's class holds."""
        self._arm(self._spec.soft_limit_of(megapixels))

    def step(self, done: int, total: int) -> None:
        """Progress is the state of the result until the last rendition is stored."""
        if done < total and time.monotonic() - self._reported >= PROGRESS_INTERVAL:
            self._reported = time.monotonic()
            meta = {"current": done, "total": total, "percent": round(100 * done / total)}
            self._task.update_state(state="PROGRESS", meta=meta)

    @contextlib.contextmanager
    def on_duty(self) -> Iterator[Watch]:
        """Hold the limit of the smallest class until the size is known."""
        before = signal.signal(signal.SIGALRM, self._expired)
        self._arm(self._spec.soft_limit_of(0))
        try:
            yield self
        finally:
            self._arm(0)
            signal.signal(signal.SIGALRM, before)

    @staticmethod
    def _arm(seconds: float) -> None:
        # Not Celery's own soft limit, which is known before the image is.
        signal.setitimer(signal.ITIMER_REAL, seconds)

    @staticmethod
    def _expired(_signal: int, _frame: object) -> NoReturn:
        raise SoftTimeLimitExceeded("longer than an image of its size may take")


@register("image.process_image", bind=True)
def process_image(
    self: Any,
    image_path: str,
    size: int | Sequence[int] = (800, 600),
    *,
    mode: str = "fit",
    output: str | None = None,
    format: str | None = None,
    quality: int | None = None,
    gravity: str | Sequence[float] = "center",
    background: str = "#ffffff",
    upscale: bool = False,
    keep_metadata: str = "none",
    color: str = "srgb",
    animated: str = "first",
    overwrite: bool = False,
    renditions: Sequence[Any] | None = None,
    raise_on_error: bool = True,
) -> imaging.ImageResult:
    """Resize one image of the image root, once or into several renditions."""
    with Watch(self, QUEUES.task("image.process_image")[1]).on_duty() as watch:
        return imaging.process_image(
            storage,
            image_path,
            size,
            mode=mode,
            output=output,
            format=format,
            quality=quality,
            gravity=gravity,
            background=background,
            upscale=upscale,
            keep_metadata=keep_metadata,
            color=color,
            animated=animated,
            overwrite=overwrite,
            renditions=renditions,
            watch=watch,
        )


@register("image.inspect_image")
def inspect_image(image_path: str, *, raise_on_error: bool = True) -> imaging.ImageFacts:
    """Tell what an image of the image root is, by its headers."""
    return imaging.inspect_image(storage, image_path)
