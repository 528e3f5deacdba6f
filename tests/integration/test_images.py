"""The image queue: hostile files in a real worker, inspection, renditions with progress, and limits by size."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from celery import chain, group
from PIL import Image

from queues import tasks
from queues.topology import QUEUES
from tests.integration.helpers import PATIENCE, awaited, children, dead_letter
from tests.unit.image.corpus import GOOD, corpus
from tests.unit.image.pictures import corners
from workers.storage import LocalStorage

if TYPE_CHECKING:
    from ops.local import Stack

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]


def test_the_corpus_does_no_harm_to_the_worker(stack: Stack) -> None:
    """Every file ends as success or with its code; the processes that began are those that end."""
    folder, cases = f"corpus-{uuid.uuid4().hex}", corpus()
    storage = LocalStorage(stack.images)
    for case in cases:
        storage.write(f"{folder}/{case.name}", case.data)
    worker = stack.processes.pid("worker-image")
    processes = set(children(worker))
    sent = group(
        tasks.process_image.s(f"{folder}/{case.name}", 32, output=f"{folder}/made/", raise_on_error=False)
        for case in cases
    ).apply_async()
    found = [value.get("code", value["status"]) for value in sent.get(timeout=4 * PATIENCE)]
    expected = [case.outcome for case in cases]
    assert {case.name: seen for case, seen in zip(cases, found, strict=True)} == {
        case.name: outcome for case, outcome in zip(cases, expected, strict=True)
    }
    assert stack.processes.pid("worker-image") == worker
    assert set(children(worker)) == processes
    made = list((stack.images / folder / "made").iterdir())
    assert len(made) == expected.count(GOOD)
    assert not list(stack.images.rglob(".warren-*"))


def test_a_refused_image_is_a_dead_letter_with_its_code(stack: Stack) -> None:
    name = f"{uuid.uuid4().hex}.jpg"
    LocalStorage(stack.images).write(name, b"just some text")
    refused = tasks.process_image(name, [10, 10])
    with pytest.raises(Exception, match="convert it first"):
        refused.get(timeout=PATIENCE)
    letter = dead_letter(stack, "image", refused.id)
    assert letter.headers["x-dead-reason"] == "unsupported_format"


def test_a_refused_image_stops_its_chain(stack: Stack) -> None:
    folder = uuid.uuid4().hex
    LocalStorage(stack.images).write(f"{folder}/text.jpg", b"just some text")
    corners().save(stack.images / folder / "good.png")
    first = tasks.process_image.s(f"{folder}/text.jpg", [10, 10])
    second = tasks.process_image.si(f"{folder}/good.png", [10, 10], output=f"{folder}/after.png")
    sent = chain(first, second).apply_async()
    with pytest.raises(Exception, match="convert it first"):
        sent.get(timeout=PATIENCE)
    assert dead_letter(stack, "image", sent.parent.id).headers["x-dead-reason"] == "unsupported_format"
    # What a worker was sent by mistake, it would have been sent before this one.
    tasks.process_image(f"{folder}/good.png", [20, 20]).get(timeout=PATIENCE)
    # Celery tells of the second, which nobody has run, that it failed with the first.
    assert sent.state == "FAILURE"
    assert not (stack.images / folder / "after.png").exists()


def test_inspection(stack: Stack) -> None:
    name = f"{uuid.uuid4().hex}.png"
    corners().save(stack.images / name)
    facts = tasks.inspect_image(name).get(timeout=PATIENCE)
    assert (facts["status"], facts["format"], facts["width"], facts["height"]) == ("success", "PNG", 400, 300)
    missing = tasks.inspect_image("missing.png", raise_on_error=False).get(timeout=PATIENCE)
    assert missing["code"] == "not_found"


def test_many_renditions_report_their_progress(stack: Stack) -> None:
    name = f"{uuid.uuid4().hex}.jpg"
    Image.effect_noise((3000, 3000), 80).convert("RGB").save(stack.images / name)
    sizes = [{"size": 2000 - 100 * step, "format": "avif"} for step in range(8)]
    running = tasks.process_image(name, renditions=sizes, output="made/")
    seen = awaited(lambda: running.state == "PROGRESS" and running.info)
    assert seen["total"] == 8
    assert 0 < seen["current"] < 8
    done = running.get(timeout=4 * PATIENCE)
    assert [one["width"] for one in done["renditions"]] == [2000 - 100 * step for step in range(8)]
    again = tasks.process_image(name, renditions=sizes, output="made/").get(timeout=PATIENCE)
    assert {one["cached"] for one in again["renditions"]} == {True}


def test_what_takes_longer_than_its_size_explains_is_ended(stack: Stack) -> None:
    program = """if True:
        import time
        from celery.exceptions import SoftTimeLimitExceeded
        from queues.topology import TaskSpec
        from workers.image_tasks import Watch

        spec = TaskSpec(name="image.any", soft_time_limit=50, time_limit=60, size_limits=((1, 1),))
        for megapixels in (0.5, 2):
            try:
                with Watch(None, spec).on_duty() as watch:
                    watch.begin(megapixels)
                    time.sleep(1.5)
                print("done")
            except SoftTimeLimitExceeded:
                print("ended")
    """
    environment = {**stack.environment("worker-image"), "PATH": os.environ["PATH"]}
    seen = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert seen.stdout.split() == ["ended", "done"], seen.stderr


def test_the_smallest_class_of_sizes_has_the_shortest_limit() -> None:
    spec = QUEUES.task("image.process_image")[1]
    assert [spec.soft_limit_of(size) for size in (0, 10, 10.1, 50, 1000)] == [30, 30, 60, 60, spec.soft_time_limit]
