"""How long a scrape takes, and what the exporter keeps in memory."""

from __future__ import annotations

import gzip
import json
import os
import re
import statistics
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import amqp

from tests.benchmarks.lane import Bench, percentile, resident, wait_for
from tests.integration.exporters import channel, flood

_PART = re.compile(r'^celery_exporter_scrape_duration_seconds{collector="(\w+)"} (\S+)$', re.MULTILINE)


def size(bench: Bench) -> None:
    """Scrapes and memory at 10 queues x 50 workers x 100 tasks, everything changing every second."""
    stop = threading.Event()
    bounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]
    counters = [("started", ""), ("completions", ""), ("retries", ""), ("worker_lost", ""), ("redeliveries", "")]
    counters += [("unstamped", ""), ("clock_skew", ""), ("timeouts", "soft"), ("timeouts", "hard")]
    counters += [("revocations", reason) for reason in ("expired", "revoked", "terminated")]
    counters += [("failures", kind) for kind in ("reported", "PermanentError", "TransientError", "ValueError", "other")]
    histograms = [("wait", ""), ("runtime", "succeeded"), ("runtime", "failed"), ("end_to_end", "")]

    def message(worker: int, seq: int) -> bytes:
        queue = f"queue{worker % 10}"
        series: list[Any] = []
        for number in range(10):
            task = f"{queue}.task_with_a_name_{number}"
            series += [[name, task, label, seq] for name, label in counters]
            series += [[name, task, label, [seq * 0.1, *[seq] * (len(bounds) + 1)]] for name, label in histograms]
        return json.dumps(
            {
                "version": 1, "incarnation": f"size-{worker}", "worker": f"{queue}@pod-{worker}", "queue": queue,
                "seq": seq, "started_at": time.time(), "sent_at": time.time(), "full": False, "due": time.time(),
                "gauges": {"concurrency": 2, "busy": 1, "reserved": 1}, "bounds": bounds, "series": series,
            }
        ).encode()  # fmt: skip

    def publish() -> None:
        with channel(bench.app) as opened:
            seq = 0
            while not stop.is_set():
                seq += 1
                begun = time.monotonic()
                # Workers speak once a second, not all at once.
                for worker in range(50):
                    opened.basic_publish(amqp.Message(message(worker, seq)), exchange="metrics")
                    stop.wait(max(0.0, (worker + 1) / 50 - (time.monotonic() - begun)))

    with bench.exporter("size") as ours:
        ours.start()
        wait_for(lambda: ours.ready, "our exporter is not ready")
        thread = threading.Thread(target=publish)
        thread.start()
        try:
            wait_for(lambda: len(ours.metrics().of("celery_worker_concurrency")) == 50, "the workers are not there")
            accept = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
            request = urllib.request.Request(f"http://{ours.address}/metrics", headers=accept)
            times, memory, begun = [], [], time.monotonic()
            parts: dict[str, list[float]] = {}
            assert ours.process is not None
            spent = processor_seconds(ours.process.pid)
            while time.monotonic() - begun < 120:
                start = time.perf_counter()
                with urllib.request.urlopen(request, timeout=10) as answer:
                    body = answer.read()
                times.append((time.perf_counter() - start) * 1000)
                for name, seconds in _PART.findall(gzip.decompress(body).decode()):
                    parts.setdefault(name, []).append(float(seconds) * 1000)
                memory.append(resident(ours.process.pid))
                time.sleep(0.5)
            busy = 100 * (processor_seconds(ours.process.pid) - spent) / (time.monotonic() - begun)
            samples = len(ours.metrics().of("celery_"))
            load = os.getloadavg()[0]
        finally:
            stop.set()
            thread.join()
    half = len(memory) // 2
    collectors = {
        name: [round(statistics.median(found), 1), round(percentile(found, 0.99), 1)] for name, found in parts.items()
    }
    bench.note(
        part="size", samples=samples, bytes=len(body), p50=statistics.median(times), p99=percentile(times, 0.99),
        worst=max(times), rss_first=max(memory[: half // 4]), rss_half=max(memory[:half]), rss_end=max(memory[half:]),
        scrapes=len(times), load=load, collectors_p50_p99=collectors, busy=busy,
    )  # fmt: skip
    bench.figure(
        "scrape p99, 10 x 50 x 100",
        f"{percentile(times, 0.99):.0f} ms, p50 {statistics.median(times):.0f} ms ({samples} samples, load {load:.0f})",
    )
    bench.figure("processor time of the exporter there", f"{busy:.0f} % of a core: 50 snapshots and 2 scrapes a second")
    bench.figure(
        "memory", f"{max(memory):.1f} MB; first half {max(memory[:half]):.1f}, second {max(memory[half:]):.1f}"
    )


def processor_seconds(pid: int) -> float:
    """Processor seconds of a process, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def scrapes(bench: Bench) -> None:
    """A scrape with one real worker, both exporters."""
    with bench.exporter("scrapes") as ours, bench.theirs() as theirs, bench.worker("-E", name="scrapes"):
        ours.start()
        wait_for(lambda: ours.ready, "our exporter is not ready")
        if theirs:
            theirs.start()
        flood(bench.app, "math.add", (1, 2), 500)
        wait_for(bench.empty, "the queue did not drain")
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        for name, exporter, number in (("ours", ours, 100), ("theirs", theirs, 15)):
            for _ in range(number if exporter else 0):
                begun = time.perf_counter()
                assert exporter is not None
                exporter.metrics()
                found[name].append((time.perf_counter() - begun) * 1000)
        sizes = {
            name: resident(exporter.process.pid)
            for name, exporter in (("ours", ours), ("theirs", theirs))
            if exporter and exporter.process
        }
    bench.note(part="scrapes", **found, memory=sizes)
    text = {
        name: f"{percentile(values, 0.99):.0f} ms, p50 {statistics.median(values):.0f} ms, {sizes[name]:.0f} MB"
        for name, values in found.items()
        if values
    }
    bench.figure("scrape p99 and memory, one worker", text["ours"], text.get("theirs", "-"))
