"""Real work through every queue of a running stack."""

from __future__ import annotations

import datetime
import email
import email.policy
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, group
from PIL import Image

from queues import tasks
from tests.integration.helpers import PATIENCE, acting_as, awaited, children, dead_letter, lines, messages
from workers.storage import LocalStorage

if TYPE_CHECKING:
    from ops.local import Stack
    from queues.app import WarrenCelery
from queues.topology import QUEUES

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]


def test_the_guides_calls() -> None:
    assert tasks.add(4, 4).get(timeout=PATIENCE) == 8
    assert tasks.add.delay(1, 2).get(timeout=PATIENCE) == 3
    assert tasks.add.apply_async(args=[1, 1]).get(timeout=PATIENCE) == 2
    assert chain(tasks.add.s(4, 4), tasks.multiply.s(2)).apply_async().get(timeout=PATIENCE) == 16


def test_a_group_of_100_and_a_chord_with_all_workers_busy_on_sqlite(stack: Stack) -> None:
    logs = {path: path.stat().st_size for path in (stack.folder / "log").glob("worker-*.log")}
    together = group(tasks.add.s(i, i) for i in range(100)).apply_async()
    fan_in = chord([tasks.multiply.s(i, i) for i in range(30)])(tasks.xsum.s())
    assert together.get(timeout=2 * PATIENCE) == [2 * i for i in range(100)]
    assert fan_in.get(timeout=2 * PATIENCE) == sum(i * i for i in range(30))
    for path, before in logs.items():  # an earlier test may have locked it, for its own reasons
        assert "database is locked" not in path.read_bytes()[before:].decode()


def test_chunks_run_in_their_inner_tasks_queue() -> None:
    made = tasks.add.chunks([(i, i) for i in range(10)], 5).group().apply_async()
    assert tasks.add.starmap([(1, 2), (3, 4)]).apply_async().get(timeout=PATIENCE) == [3, 7]
    assert made.get(timeout=PATIENCE) == [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18]]


def test_a_chord_across_queues(stack: Stack, project: Path) -> None:
    storage = LocalStorage(stack.images)
    name = f"{uuid.uuid4().hex}.jpg"
    storage.write(name, (project / "examples" / "photos" / "dogs.jpg").read_bytes())
    header = [tasks.process_image.si(name, [32, 32], output=f"small-{name}"), tasks.add.si(1, 2)]
    assert chord(header)(tasks.multiply.si(6, 7)).get(timeout=PATIENCE) == 42
    assert (stack.images / f"small-{name}").exists()
    made = (tasks.add.si(1, 2) | tasks.process_image.si(name, [64, 64])).apply_async().get(timeout=PATIENCE)
    assert max(made["width"], made["height"]) == 64


def test_progress_is_seen_while_a_task_runs() -> None:
    running = tasks.long_task(2)
    assert awaited(lambda: running.state == "PROGRESS" and running.info)
    assert tasks.status(running.id)["info"]["total"] == 2
    assert running.get(timeout=PATIENCE) == {"status": "success", "total": 2}


def test_state_and_result_from_another_process(producer_environment: dict[str, str]) -> None:
    done = tasks.add(20, 22)
    done.get(timeout=PATIENCE)
    code = f"from queues import tasks; print(tasks.result({done.id!r}).get(timeout=5), tasks.status('never')['status'])"
    seen = subprocess.run(
        [sys.executable, "-c", code], env=producer_environment, capture_output=True, text=True, check=True
    )
    assert seen.stdout.split() == ["42", "waiting"]


def test_a_passing_fault_is_retried_through_the_brokers_delay() -> None:
    assert tasks.reliable_task({"fail_times": 1}).get(timeout=PATIENCE) == {"status": "success", "attempts": 2}


def test_a_permanent_fault_is_a_failure_and_a_dead_letter(stack: Stack) -> None:
    failed = tasks.reliable_task({"fail": True})
    with pytest.raises(Exception, match="asked for a failure"):
        failed.get(timeout=PATIENCE)
    assert failed.state == "FAILURE"
    letter = dead_letter(stack, "math", failed.id)
    assert letter is not None
    assert letter.headers["x-dead-reason"] == "asked_to_fail"


def test_the_guides_error_dict_comes_by_asking_and_leaves_no_dead_letter(stack: Stack) -> None:
    answered = tasks.reliable_task({"fail": True}, raise_on_error=False)
    value = answered.get(timeout=PATIENCE)
    assert value["status"] == "failed"
    assert value["error"].startswith("the data asked")
    unfit = tasks.reliable_task({"fail_times": "often"}, raise_on_error=False).get(timeout=PATIENCE)
    assert (unfit["status"], unfit["code"]) == ("failed", "bad_argument")
    missing = tasks.process_image("missing.jpg", [10, 10], raise_on_error=False).get(timeout=PATIENCE)
    assert (missing["status"], missing["code"]) == ("error", "not_found")
    ids = {message.headers.get("id") for message in messages(acting_as(stack, "operator"), "math.dead")}
    assert answered.id not in ids


@pytest.mark.parametrize("photo", ["dandelions.jpg", "dogs.jpg", "coffee.png", "mountains.webp"])
def test_a_photograph_is_resized(stack: Stack, project: Path, photo: str) -> None:
    name = f"{uuid.uuid4().hex}-{photo}"
    LocalStorage(stack.images).write(name, (project / "examples" / "photos" / photo).read_bytes())
    done = tasks.process_image(name, [200, 200]).get(timeout=PATIENCE)
    assert done["path"].startswith(f"processed_{Path(name).stem}-200x200-fit-")
    with Image.open(stack.images / done["path"]) as image:
        assert image.size == (done["width"], done["height"])
        assert max(image.size) == 200


def test_an_image_outside_the_root_is_refused(stack: Stack) -> None:
    for path in ("../results.sqlite", "/etc/passwd"):
        refused = tasks.process_image(path, [10, 10])
        with pytest.raises(Exception, match=r"(?i)root|outside|refus"):
            refused.get(timeout=PATIENCE)
        assert dead_letter(stack, "image", refused.id) is not None


def test_a_mail_arrives_over_tls(stack: Stack) -> None:
    subject = f"Grüße {uuid.uuid4().hex}"
    sent = tasks.send_email("alice@example.com", subject, "Hallo\n").get(timeout=PATIENCE)
    assert sent["status"] == "sent"
    received = [
        email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in stack.mails.glob("*.eml")
    ]
    mail = next(mail for mail in received if mail["Message-ID"] == sent["message_id"])
    assert (mail["To"], mail["Subject"]) == ("alice@example.com", subject)
    assert mail["Auto-Submitted"] == "auto-generated"


def test_an_expired_task_is_a_dead_letter_and_an_expired_tick_is_dropped(stack: Stack, app: WarrenCelery) -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=5)
    late = tasks.add.apply_async([1, 2], expires=past)
    tick = app.send_task("monitor.check_status", expires=past)
    assert dead_letter(stack, "math", late.id) is not None
    assert awaited(lambda: app.AsyncResult(late.id).state == "REVOKED")
    done = app.send_task("celery.backend_cleanup", ignore_result=False)
    done.get(timeout=PATIENCE)
    ids = {message.headers.get("id") for message in messages(acting_as(stack, "operator"), "monitor.dead")}
    assert tick.id not in ids


def test_the_math_worker_never_loads_pillow(stack: Stack) -> None:
    def maps(service: str) -> str:
        pid = stack.processes.pid(service)
        return "".join(Path(f"/proc/{child}/maps").read_text() for child in [pid, *children(pid)])

    assert "PIL/_imaging" in maps("worker-image")
    for service in ("worker-math", "worker-email", "worker-monitor", "beat", "exporter"):
        assert "PIL/_imaging" not in maps(service)


def test_prefetch_is_one_for_each_process_and_one_mail_worker_is_active(stack: Stack) -> None:
    listed = stack.broker.ctl("list_consumers", "--formatter", "json", "queue_name", "prefetch_count")
    counts = {row["queue_name"]: row["prefetch_count"] for row in json.loads(listed)}
    assert {name: counts[name] for name in ("math", "image", "email", "monitor")} == {
        "math": 2,
        "image": 2,
        "email": 1,
        "monitor": 1,
    }


def test_log_lines_are_json_with_the_tasks_names_and_no_arguments(stack: Stack) -> None:
    secret = f"secret-{uuid.uuid4().hex}"
    done = tasks.reliable_task({"note": secret})
    done.get(timeout=PATIENCE)
    log = stack.folder / "log" / "worker-math.log"

    def found() -> list[dict[str, object]]:
        return [line for line in lines(log) if line.get("task_id") == done.id]

    assert awaited(lambda: len(found()) >= 2)
    assert {(line["task"], line["queue"], line["attempt"]) for line in found()} == {("math.reliable_task", "math", 1)}
    assert secret not in log.read_text()
    assert "[queues]" not in log.read_text(), "Celery's banner is no JSON"


def test_arguments_are_in_the_body_alone(stack: Stack, app: WarrenCelery) -> None:
    failed = tasks.reliable_task({"fail": True, "note": "alice@example.com"})
    with pytest.raises(Exception, match="asked"):
        failed.get(timeout=PATIENCE)
    letter = dead_letter(stack, "math", failed.id)
    assert "alice" not in json.dumps(letter.headers, default=str)


def test_beat_sends_the_status_check(stack: Stack) -> None:
    log = stack.folder / "log" / "beat.log"
    assert awaited(lambda: "monitor.check_status" in log.read_text(), 60)


def test_limits_of_the_table_are_in_force_also_for_celerys_own_tasks(stack: Stack) -> None:
    answers = (
        acting_as(stack, "operator")
        .control.inspect(timeout=3)
        .registered("soft_time_limit", "time_limit", "rate_limit")
    )
    found = {
        line.partition(" ")[0]: line
        for worker, lines in answers.items()
        for line in lines
        if worker.startswith("math@")
    }
    assert "[soft_time_limit=10 time_limit=15]" in found["math.add"]
    mails = next(lines for worker, lines in answers.items() if worker.startswith("email@"))
    assert any("email.send_email [soft_time_limit=420 time_limit=450]" in line for line in mails)


def test_processes_are_recycled_as_the_table_says(stack: Stack) -> None:
    stats = acting_as(stack, "operator").control.inspect(timeout=3).stats()
    pools = {worker.partition("@")[0]: found["pool"] for worker, found in stats.items()}
    for queue in QUEUES:
        assert pools[queue.name]["max-concurrency"] == queue.concurrency
        assert pools[queue.name]["max-tasks-per-child"] == queue.max_tasks_per_child
