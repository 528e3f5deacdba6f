"""A pool's processes end when they are told to, by billiard's own code."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from billiard import common, pool

from workers.wakeup import leave

if TYPE_CHECKING:
    from pathlib import Path

#: A real pool of two processes that have worked and are told to end.
POOL = """
import sys, time
from billiard import pool
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import process_destructor
from kombu.asynchronous import Hub, set_event_loop
import workers.wakeup
hub = Hub()
set_event_loop(hub)
made = AsynPool(processes=2, threads=False, synack=False, on_process_exit=process_destructor)
made.register_with_event_loop(hub)
done, loop = [], hub.create_loop()
for number in range(20):
    made.apply_async(abs, (number,), callback=done.append)
while len(done) < 20:
    next(loop)
processes = list(made._pool)
made.close()
made.join()
print(sorted(done) == list(range(20)), [process.exitcode for process in processes])
"""


def test_a_pool_that_ends_has_all_its_results(project: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, "-c", POOL], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True [0, 0]\n", done.stderr


def test_only_a_process_that_was_told_to_end_leaves_out_billiards_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "time.sleep(1)" in inspect.getsource(pool.Worker._do_exit), "billiard has changed: drop `leave`"
    shipped = pool.time
    monkeypatch.setattr(pool, "time", shipped)
    leave(exitcode=pool.EX_RECYCLE)
    assert pool.time is shipped
    with monkeypatch.context() as signalled:
        signalled.setattr(common, "_should_have_exited", [True])
        leave(exitcode=pool.EX_OK)
    assert pool.time is shipped
    leave(exitcode=pool.EX_OK)
    assert pool.time is not shipped
    pool.time.sleep(3600)
    assert pool.time.monotonic is time.monotonic, "only its sleep is replaced: billiard may use the rest"
