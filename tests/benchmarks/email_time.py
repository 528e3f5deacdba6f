"""What one mail takes: the guide's task, which connects for each, beside ours, in turn, against two relays."""

from __future__ import annotations

import contextlib
import json
import random
import smtplib
import statistics
import subprocess
import sys
import time
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import TYPE_CHECKING, Any

from ops.certs import Authority
from ops.ports import free_port, is_free
from tests import postfix
from tests.benchmarks.email_lab import lab, wait_for
from workers.mailer import Draft, Mailer, SmtpConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.benchmarks.email_lab import Lab

#: The most that ours may take of the guide's time.
ASKED = 0.45
SENDER, TO, SUBJECT, BODY = "warren@example.com", "ada@example.com", "Hello", "The burrow is dry.\n" * 20


def guide(host: str, port: int, user: str, password: str) -> None:
    """The guide's task: a connection, STARTTLS without a check, and a login for each mail."""
    message = MIMEMultipart()
    message["From"], message["To"], message["Subject"] = SENDER, TO, SUBJECT
    message.attach(MIMEText(BODY, "plain"))
    with smtplib.SMTP(host, port) as server:
        server.starttls()
        server.login(user, password)
        server.send_message(message)


def compare(name: str, config: SmtpConfig, password: str, count: int) -> dict[str, Any]:
    """Send so many mails of either kind, in random turn."""
    assert config.user is not None
    mailer = Mailer(config)
    taken: dict[str, list[float]] = {"guide": [], "ours": []}
    turns = [kind for kind in taken for _ in range(count)]
    random.Random(1).shuffle(turns)
    guide(config.host, config.port, config.user, password)
    mailer.send(Draft(to_addr=TO, subject=SUBJECT, body=BODY), key="first")
    for number, kind in enumerate(turns):
        began = time.perf_counter()
        if kind == "guide":
            guide(config.host, config.port, config.user, password)
        else:
            mailer.send(Draft(to_addr=TO, subject=SUBJECT, body=BODY), key=str(number))
        taken[kind].append(1000 * (time.perf_counter() - began))
    mailer.close()
    return row(name, taken)


def row(name: str, taken: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """Medians and quartiles in milliseconds, and the ratio of the medians."""
    found: dict[str, Any] = {"relay": name}
    for kind, values in taken.items():
        found[kind] = [round(value, 3) for value in statistics.quantiles(values, n=4)]
    found["ratio"] = round(found["ours"][1] / found["guide"][1], 3)
    raw = {kind: [round(value, 3) for value in values] for kind, values in taken.items()}
    return {**found, **more, "raw": raw}


def configuration(port: int, ca: Path, user: str, password: Path) -> SmtpConfig:
    """A relay on this machine, with STARTTLS and AUTH."""
    return SmtpConfig(host="localhost", port=port, from_addr=SENDER, ca_file=ca, user=user, password_file=password)


def in_a_worker(running: Lab, changes: dict[str, str], count: int) -> tuple[list[float], list[list[float]]]:
    """Send mails by a worker without a limit.

    Returns:
        Milliseconds of each whole task: claim, beginning, mail and record in the ledger; and for each mail the
        milliseconds that it was in doubt, from its beginning and from the relay's answer to the record.
    """
    window = running.folder / "window"
    worker = running.worker(MAIL_RATE="0", BENCH_WINDOW=str(window), **changes).wait()
    for number in range(count):
        running.send(f"time {number}")
    wait_for(lambda: worker.log.read_text().count("task succeeded") >= count, "the mails were not sent")
    lines = [json.loads(line) for line in worker.log.read_text().splitlines() if "task succeeded" in line]
    running.clear()
    doubts = [[1000 * float(part) for part in line.split()] for line in window.read_text().splitlines()]
    return [1000 * line["runtime"] for line in lines], doubts


@contextlib.contextmanager
def sink(running: Lab) -> Iterator[int]:
    """The mail sink in a process of its own, as the stack has it; its port."""
    files, port = running.stack.folder, free_port()
    identity = Authority.ensure(files / "certs").server(["localhost"], role="relay")
    command = (sys.executable, "-m", "ops.mailsink", "--port", str(port), "--folder", str(running.folder / "sink"))
    paths = (
        "--cert",
        str(identity.cert),
        "--key",
        str(identity.key),
        "--password-file",
        str(files / "secrets" / "smtp"),
    )
    process = subprocess.Popen((*command, *paths), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: not is_free(port), "the mail sink did not start")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def measure(count: int) -> Iterator[dict[str, Any]]:
    """Compare with either relay; a machine without Postfix says so."""
    with lab() as running, contextlib.ExitStack() as stack:
        files = running.stack.folder
        port = stack.enter_context(sink(running))
        config = configuration(port, files / "certs" / "ca.crt", "warren", files / "secrets" / "smtp")
        yield compare("aiosmtpd", config, (files / "secrets" / "smtp").read_text().strip(), count)
        problem = postfix.missing()
        if problem:
            yield {"relay": "postfix", "ratio": float("inf"), "problem": problem}
            return
        server = stack.enter_context(postfix.running())
        config = configuration(server.port, server.ca, postfix.USER, server.password_file)
        found = compare("postfix", config, postfix.PASSWORD, count)
        yield found
        tasks, doubts = in_a_worker(running, server.environment, count)
        raw = {"guide": found["raw"]["guide"], "ours": tasks}
        begun, answered = zip(*doubts, strict=True)
        windows = {"in_doubt": list(begun), "answered_to_recorded": list(answered)}
        quartiles = {
            name: [round(value, 3) for value in statistics.quantiles(values, n=4)] for name, values in windows.items()
        }
        longest = {f"{name}_longest": round(max(values), 3) for name, values in windows.items()}
        yield row(
            "the guide's function beside our whole task with its ledger, through postfix", raw, **quartiles, **longest
        )
