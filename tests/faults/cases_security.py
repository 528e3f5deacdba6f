"""Who is let in, and what they may do."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import amqp

from ops.certs import Authority
from ops.processes import clean_environment
from queues.app import create_app
from queues.settings import Settings
from tests.faults import control
from tests.faults.journal import Sent
from tests.faults.registry import each
from tests.faults.relay import Relay, forged
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.trial import Trial

#: A port that nobody listens on.
DEAD_PORT = 9


@each(
    "tls",
    "wrong CA, wrong name, expired certificate, plaintext client, no client certificate; a second host",
    bound=260,
)
def tls(trial: Trial) -> None:
    """Five connections that must fail, and one that must not: the first of two hosts is down."""
    lab = trial.lab
    stranger = Authority.ensure(trial.folder / "stranger")
    client = lab.authority.client("producer" if trial.ours else control.NAME)
    wrong = Relay(forged(lab.authority, trial.folder, name="other.example"), client, lab.broker.port)
    expired = Relay(forged(lab.authority, trial.folder, name="localhost", expired=True), client, lab.broker.port)
    ca = str(stranger.folder / "ca.crt")
    changes: dict[str, dict[str, str | None]] = {
        "wrong CA": {"CA": ca},
        "wrong name": {"PORT": str(wrong.port)},
        "expired": {"PORT": str(expired.port)},
        "plaintext": {"PLAIN": "1"},
        "no client certificate": {"CERT": None},
        "second host": {"PORT": f"{DEAD_PORT};{lab.broker.port}"},
    }
    trial.start()
    passed, answers = [], {}
    try:
        for name, change in changes.items():
            try:
                publish_as(trial, change)
            except PermissionError as exc:
                answers[name] = str(exc)
            else:
                passed.append(name)
    finally:
        wrong.close()
        expired.close()
    trial.settle(20)
    refused = [name for name in changes if name not in passed and name != "second host"]
    trial.line.note = f"denied {len(refused)} of 5"
    if extra := [name for name in passed if name != "second host"]:
        trial.line.note += f" (let in: {', '.join(extra)})"
    trial.line.figures["answers"] = answers
    trial.line.note += f"; second host {'reached' if 'second host' in passed else 'NOT reached'}"
    if trial.ours:
        trial.require(passed == ["second host"], f"connected with: {', '.join(passed) or 'none'}")
        vague = [name for name, answer in answers.items() if not answer.startswith("refused: BrokerUnavailableError")]
        trial.require(not vague, f"not told why: {', '.join(vague)}")


def denied(action: Callable[[], Any]) -> bool:
    """Whether the broker refused for want of a right; any other error is none."""
    try:
        action()
    except amqp.exceptions.AccessRefused:
        return True
    return False


def publish_as(trial: Trial, change: dict[str, str | None]) -> None:
    """Publish one task as a producer whose settings differ.

    Raises:
        PermissionError: it was not confirmed.
    """
    ports = (change.get("PORT") or str(trial.lab.broker.port)).split(";")
    if trial.ours:
        settings = trial.lab.environment("producer") | {"BROKER_HOSTS": ",".join(f"127.0.0.1:{port}" for port in ports)}
        if "CA" in change:
            settings["BROKER_CA"] = change["CA"] or ""
        if "CERT" in change:
            del settings["BROKER_CERT"], settings["BROKER_KEY"]
        if "PLAIN" in change:
            for name in ("BROKER_CA", "BROKER_CERT", "BROKER_KEY"):
                del settings[name]
            settings["BROKER_PLAINTEXT"] = "1"
        app: Any = create_app(Settings.from_env(settings), name="stranger")
        producer = type(trial.producer)(trial.side, trial.log, app)
        try:
            outcome = producer.send("faults.run", (0.0,))
        finally:
            app.close()
    else:
        settings = trial.lab.control_environment()
        one = settings["STOCK_URL"]
        settings["STOCK_URL"] = ";".join(one.replace(f":{trial.lab.broker.port}/", f":{port}/") for port in ports)
        if "CA" in change:
            settings["STOCK_CA"] = change["CA"] or ""
        if "PLAIN" in change:
            settings["STOCK_URL"] = settings["STOCK_URL"].replace("amqps://", "amqp://")
        if "CERT" in change:
            del settings["STOCK_CERT"], settings["STOCK_KEY"]
        outcome = published_apart(trial, settings)
    if outcome != "confirmed":
        raise PermissionError(f"{outcome}: {Sent.of(trial.log).last_error}")


def published_apart(trial: Trial, settings: dict[str, str]) -> str:
    """Publish one task from a process of its own: within one, stock apps of one user share their connections."""
    before = Sent.of(trial.log).of_kind("confirmed")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.publisher", "stock", str(trial.log), "faults.run", "1"],
        env={**clean_environment(), **settings},
        stdin=subprocess.DEVNULL,
    )
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return "confirmed" if Sent.of(trial.log).of_kind("confirmed") - before else "unknown"


@each("permissions", "what each user must not do, and an attempt to shut the workers down by remote control")
def permissions(trial: Trial) -> None:
    """Stock Celery has one user, which may do everything."""
    trial.start()
    worker = trial.workers[0]
    pid = worker.pid
    users = ("producer", "beat", "exporter", "worker-faults") if trial.ours else (control.NAME,)
    allowed, tried = [], 0
    for user in users:
        for name, action in forbidden(trial, user).items():
            tried += 1
            if not denied(action):
                allowed.append(f"{user}: {name}")
    # The shutdown by whoever may send control commands at all.
    sender = trial.side.viewer if trial.ours else trial.side.producer
    tried += 1
    with contextlib.suppress(Exception):
        sender.control.shutdown()
    if awaited(lambda: worker.pid != pid, 10):
        allowed.append("control shutdown")
    trial.await_consumers(1)
    trial.send()
    trial.settle(20)
    trial.line.note = f"denied {tried - len(allowed)} of {tried}"
    trial.line.figures["allowed"] = allowed
    if trial.ours:
        trial.require(not allowed, f"allowed: {', '.join(allowed)}")


def forbidden(trial: Trial, user: str) -> dict[str, Callable[[], Any]]:
    """What a user of this side must not do; each is tried on a connection of its own."""
    exchange, key = trial.side.route

    def on_channel(act: Callable[[Any], Any]) -> Callable[[], Any]:
        def run() -> None:
            if trial.ours:
                app: Any = create_app(Settings.from_env(trial.lab.environment(user)), name=user)
            else:
                app = trial.side.viewer
            with app.connection_for_write() as connection, connection.channel() as channel:
                act(channel)

        return run

    def publish(channel: Any, where: str, routing_key: str) -> None:
        channel.basic_publish_confirm(amqp.Message(b"{}"), exchange=where, routing_key=routing_key, mandatory=False)

    found: dict[str, Callable[[Any], Any]] = {
        "publish past the exchange": lambda channel: publish(channel, "", trial.side.queue),
        "send control commands": lambda channel: publish(channel, "celery.pidbox", ""),
        "make a queue": lambda channel: channel.queue_declare("another", durable=True),
        "make an exchange": lambda channel: channel.exchange_declare("another", "topic", auto_delete=True),
    }
    if not user.startswith("worker"):
        found["read the work queue"] = lambda channel: channel.basic_get(trial.side.queue)
        found["empty the work queue"] = lambda channel: channel.queue_purge(trial.side.queue)
    else:
        found["read another's queue"] = lambda channel: channel.basic_get("math")
    if user == "exporter":
        found["publish a task"] = lambda channel: publish(channel, exchange, key)
    found["delete the work queue"] = lambda channel: channel.queue_delete(trial.side.queue)
    return {name: on_channel(act) for name, act in found.items()}
