"""The work of one task: what is stored already, one decoding, and every result from it."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypedDict

from queues.errors import PermanentError
from workers import codec, colour
from workers.imagemetadata import metadata_of
from workers.imagepixels import Pixels
from workers.imageplan import Plan, plan
from workers.imagesource import HEAD, TRANSPOSE, Source, SourceImage, damage, read_bytes, read_whole, sniff
from workers.imagespec import ANIMATED, MAX_SIDE, ImageRejected, ImageSpec, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from workers.storage import Storage

#: How many times the result's sides the decoder leaves to the resize: below, JPEG's coarse steps would be seen. It is
#: more for results below so many pixels, where more shows and the finer step costs less.
_DECODE_GAP, _DECODE_GAP_SMALL, _SMALL = 1.25, 1.5, 250_000


class Rendition(TypedDict):
    """One stored result."""

    path: str
    format: str
    width: int
    height: int
    bytes: int
    frames: int
    cached: bool


class Watch(Protocol):
    """Who wants to know how the work goes."""

    def begin(self, megapixels: float) -> None:
        """So much is to be decoded and encoded."""
        ...

    def step(self, done: int, total: int) -> None:
        """So many results of all are stored."""
        ...


class Nobody:
    """Does not want to know."""

    def begin(self, megapixels: float) -> None:
        """Nothing."""

    def step(self, done: int, total: int) -> None:
        """Nothing."""


class Laps:
    """Milliseconds of each phase."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._phases = dict.fromkeys(("fetch", "decode", "resize", "encode", "store"), 0.0)

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as the phase's."""
        now = time.perf_counter()
        self._phases[phase] += (now - self._last) * 1000
        self._last = now

    def result(self) -> dict[str, float]:
        """Return each phase's milliseconds, and ``total``."""
        phases = {**self._phases, "total": (self._last - self._start) * 1000}
        return {phase: round(elapsed, 1) for phase, elapsed in phases.items()}


@dataclass(slots=True)
class Job:
    """One result: what is asked for, and what there is of it."""

    spec: ImageSpec
    output: str
    format: str
    fingerprint: str
    plan: Plan = field(init=False)
    stored: Plan = field(init=False)
    frames: list[Image.Image] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    profile: bytes | None = None
    result: Rendition | None = None


class Work:
    """One task: every result that is not stored yet, from one decoding."""

    def __init__(self, storage: Storage, key: str, specs: list[ImageSpec], limits: Limits, watch: Watch) -> None:
        self.storage, self.key, self.specs, self.limits, self.watch = storage, key, specs, limits, watch
        self.laps = Laps()

    def run(self) -> tuple[list[Rendition], Source, dict[str, float]]:
        """Return the results in the order asked for, the source's facts, and the time of each phase."""
        found = self.storage.stat(self.key)
        with self.storage.open_read(self.key) as file:
            jobs = self._jobs(sniff(read_bytes(file, HEAD, self.key), self.key), found.version)
            missing = [job for job in jobs if job.result is None]
            file.seek(0)
            if missing:
                # All of it before decoding: what fails later is the image's fault, never the disk's.
                data = read_whole(file, found.size, self.key, self.limits)
                source = SourceImage(io.BytesIO(data), len(data), self.key, self.limits)
            else:
                source = SourceImage(file, found.size, self.key, self.limits)
        self.laps.lap("fetch")
        if missing:
            self._make(source, missing, len(jobs))
        return [job.result for job in jobs if job.result], source.facts, self.laps.result()

    def _jobs(self, given: str, version: str) -> list[Job]:
        jobs = []
        for spec in self.specs:
            format = spec.format or given
            fingerprint = spec.fingerprint(self.key, version, format)
            job = Job(spec, spec.name(self.key, format, fingerprint), format, fingerprint)
            job.result = self._stored(job)
            jobs.append(job)
        return jobs

    def _stored(self, job: Job) -> Rendition | None:
        """Return the result where the very same is stored: a derived name tells, or what the file was made from."""
        if job.spec.overwrite:
            return None
        if job.spec.output is not None and self.storage.fingerprint(job.output) != job.fingerprint:
            return None
        try:
            size = self.storage.stat(job.output).size
            with self.storage.open_read(job.output) as file:
                facts = SourceImage(file, size, job.output, self.limits).facts
        except PermanentError:
            return None
        return Rendition(
            path=job.output,
            format=facts["format"],
            width=facts["width"],
            height=facts["height"],
            bytes=facts["bytes"],
            frames=facts["frames"],
            cached=True,
        )

    def _make(self, source: SourceImage, jobs: list[Job], total: int) -> None:
        width, height = source.facts["width"], source.facts["height"]
        for job in jobs:
            job.plan = plan(job.spec, width, height)
            job.stored = job.plan.as_stored(source.turn, width, height)
        self.watch.begin(self._check(source, jobs))
        # From the largest to the smallest, each may be made from the one before.
        jobs = sorted(jobs, key=lambda job: job.plan.scale, reverse=True)
        done = total - len(jobs)
        for decoded in self._decoded(source, jobs):
            pixels = decoded
            for job in jobs:
                if job.result:
                    continue
                # The result before is the smallest there is: where it is large enough, it is the cheapest to shrink.
                pixels = (pixels if pixels.enough_for(job.stored) else decoded).resized(job.stored)
                job.frames.append(self._finished(pixels.image, job, source))
                job.durations.append(pixels.duration)
                self.laps.lap("resize")
                if len(job.frames) == self._frames(job, source):
                    self._store(job, source)
                    done += 1
                    self.watch.step(done, total)

    def _check(self, source: SourceImage, jobs: list[Job]) -> float:
        """Refuse what would cost too much, before anything is decoded, and return the cost in megapixels."""
        results = 0
        for job in jobs:
            if job.plan.pixels > self.limits.pixels or max(job.plan.canvas) > MAX_SIDE:
                raise ImageRejected(
                    "too_large",
                    f"The result would have {job.plan.canvas[0]}x{job.plan.canvas[1]} pixels, it may have "
                    f"{self.limits.pixels}, {MAX_SIDE} a side: ask for less.",
                )
            if job.spec.animated == "all" and source.frames > 1 and job.format not in ANIMATED:
                raise ImageRejected(
                    "bad_argument",
                    f"{job.format} holds one frame of {source.frames}: ask for webp or gif, or for animated='first'.",
                )
            results += job.plan.pixels * self._frames(job, source)
        frames = max(self._frames(job, source) for job in jobs)
        decoded = source.facts["width"] * source.facts["height"] * frames
        if max(decoded, results) > self.limits.total_pixels:
            raise ImageRejected(
                "too_large",
                f"{frames} frames of {self.key!r} and {len(jobs)} results would be {decoded} pixels to decode and "
                f"{results} to encode, {self.limits.total_pixels} are allowed: ask for less.",
            )
        return (decoded + results) / 1e6

    def _frames(self, job: Job, source: SourceImage) -> int:
        return source.frames if job.spec.animated == "all" else 1

    def _decoded(self, source: SourceImage, jobs: list[Job]) -> Iterator[Pixels]:
        """Yield each frame that is needed."""
        frames = max(self._frames(job, source) for job in jobs)
        for frame in range(frames):
            duration, scale = 0, (1.0, 1.0)
            if frames > 1:
                duration = source.seek(frame)
            else:
                scale = source.load(_wanted(source, jobs))
            with damage(self.key):
                image = colour.resizable(source.image, self.key)
            self.laps.lap("decode")
            yield Pixels(image, scale, duration=duration, photo=source.facts["format"] == "JPEG")

    def _finished(self, image: Image.Image, job: Job, source: SourceImage) -> Image.Image:
        """Turn, colours and canvas: on the small image these cost a thirtieth of what they cost on the source."""
        if source.turn in TRANSPOSE:
            image = image.transpose(TRANSPOSE[source.turn])
        profile = source.image.info.get("icc_profile")
        if job.spec.color == "keep" and colour.holds_profile(image, profile, job.format):
            job.profile = profile
        else:
            image = colour.srgb(image, profile)
        image = colour.without_idle_alpha(image)
        return colour.padded(image, job.plan.canvas, job.plan.offset, job.spec.background)

    def _written(self, encoded: bytes, job: Job) -> int:
        """Count the frames of an animation: writers join those that look alike."""
        return SourceImage(io.BytesIO(encoded), len(encoded), job.output, self.limits).facts["frames"]

    def _store(self, job: Job, source: SourceImage) -> None:
        how = codec.Encoding(
            format=job.format,
            quality=job.spec.quality,
            background=job.spec.background,
            profile=job.profile,
            metadata=metadata_of(source.image, job.spec.keep_metadata, job.format),
            durations=job.durations,
            plays=source.plays,
        )
        width, height = job.frames[0].size
        encoded = codec.encode(job.frames, how)
        frames = self._written(encoded, job) if len(job.frames) > 1 else 1
        job.frames.clear()
        self.laps.lap("encode")
        if len(encoded) > self.limits.result_bytes:
            raise ImageRejected(
                "too_large",
                f"The result has {len(encoded)} bytes, {self.limits.result_bytes} are allowed: ask for less.",
            )
        self.storage.write(job.output, encoded, job.fingerprint)
        self.laps.lap("store")
        job.result = Rendition(
            path=job.output,
            format=job.format,
            width=width,
            height=height,
            bytes=len(encoded),
            frames=frames,
            cached=False,
        )


def _wanted(source: SourceImage, jobs: list[Job]) -> tuple[float, float]:
    """Return the width and height that the stored image must still have for every result."""
    width, height = source.image.size
    across = down = 0.0
    for stored in (job.stored for job in jobs):
        left, top, right, bottom = stored.box
        gap = _DECODE_GAP_SMALL if stored.size[0] * stored.size[1] < _SMALL else _DECODE_GAP
        across = max(across, gap * stored.size[0] / (right - left))
        down = max(down, gap * stored.size[1] / (bottom - top))
    return across * width, down * height
