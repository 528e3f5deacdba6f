"""A picture of Prometheus' graph of a real load: `python -m tests.benchmarks.screenshot docs/images/prometheus.png`.

Needs Prometheus and a headless Chromium (Debian: chromium-headless-shell).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

from ops.local import Stack
from queues.app import create_app
from queues.settings import Settings
from tests.integration.exporters import flood
from tests.integration.prometheus import Prometheus

EXPRESSIONS = (
    "queue:celery_queue_messages_ready:max",
    "histogram_quantile(0.95, sum by (le, queue) (queue_task_le:celery_task_queue_wait_seconds_bucket:rate5m))",
)
#: How long the load lasts, and what the graph shows.
MINUTES = 6


def load(stack: Stack, seconds: float) -> None:
    """Bursts of sums, photos that are made smaller, retries now and then."""
    shutil.copy(Path(__file__).parents[2] / "examples" / "photos" / "dogs.jpg", stack.images / "dogs.jpg")
    with create_app(Settings.from_env(stack.environment("producer"))) as app:
        end, turn = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            turn += 1
            if turn % 6 == 1:
                flood(app, "math.add", (1, 2), 4000)
            for _ in range(20):
                app.send_task("image.process_image", ("dogs.jpg", [320, 320]), ignore_result=True)
            app.send_task("math.reliable_task", ({"fail_times": turn % 2},), ignore_result=True)
            time.sleep(10)


def shoot(url: str, target: Path) -> None:
    """Draw the graphs of the expressions."""
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium") or "chromium"
    query: dict[str, str] = {}
    for number, expression in enumerate(EXPRESSIONS):
        query |= {f"g{number}.expr": expression, f"g{number}.tab": "0", f"g{number}.range_input": f"{MINUTES}m"}
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1605"]
    command += ["--virtual-time-budget=20000", f"--screenshot={target.resolve()}", f"{url}/graph?{urlencode(query)}"]
    subprocess.run(command, check=True, timeout=180, stderr=subprocess.DEVNULL)


def main() -> None:
    """Start everything, load it, draw."""
    with tempfile.TemporaryDirectory(prefix="warren-shot-") as folder, Stack(Path(folder) / "home") as stack:
        stack.start()
        with Prometheus(stack.folder / "prometheus.yml", Path(folder) / "prometheus", interval="5s") as prometheus:
            load(stack, MINUTES * 60)
            shoot(prometheus.url, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
