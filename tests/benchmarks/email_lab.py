"""What the mail benchmarks share: a broker, a relay that notes what it sees, and workers of the email queue."""

from __future__ import annotations

import contextlib
import email
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.certs import Authority
from ops.local import Stack
from ops.mailsink import Mailbox, controller
from ops.ports import free_port
from ops.processes import clean_environment
from queues.app import WarrenCelery, create_app
from queues.headers import REASON
from queues.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiosmtpd.smtp import SMTP, Envelope, Session

PATIENCE = 180.0
TASK = "email.send_email"
#: A recipient that is refused for a while, each time anew.
GREY = "grey@example.com"


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
    """Wait until something is true.

    Raises:
        TimeoutError: it did not become true; the text says what.
    """
    limit = time.monotonic() + patience
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(what)
        time.sleep(0.05)


class Relay(Mailbox):
    """Keeps mails, and notes when each transaction began and when each mail was taken, in seconds since the epoch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begun: list[float] = []
        self.taken: list[tuple[float, str]] = []

    async def handle_MAIL(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """The beginning of a mail, be it the first attempt or not."""
        self.begun.append(time.time())
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Everybody but the grey one."""
        if address == GREY:
            return "450 4.7.1 Greylisted, try again in 5 seconds"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """The dot has come."""
        message = email.message_from_bytes(envelope.original_content or b"")
        self.taken.append((time.time(), str(message["Subject"])))
        return await super().handle_DATA(server, session, envelope)


class Worker:
    """One worker of the email queue, of `tests.benchmarks.email_worker`, in a process group of its own."""

    number = 0

    def __init__(self, lab: Lab, **changes: str) -> None:
        Worker.number += 1
        self.name = f"email@bench{Worker.number}"
        self.beat = lab.folder / f"{self.name}.alive"
        self.log = lab.folder / f"{self.name}.log"
        environment = {**clean_environment(), **lab.environment, "HEARTBEAT_FILE": str(self.beat), **changes}
        command = (sys.executable, "-m", "celery", "-A", "tests.benchmarks.email_worker", "worker", "-Q", "email")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                (*command, "-n", self.name, "--loglevel", "INFO"),
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait(self) -> Worker:
        """Wait until it consumes, or stands by."""
        wait_for(self.beat.exists, f"{self.name} did not start: {self.log.read_text()[-2000:]}")
        return self

    @property
    def alive(self) -> bool:
        """Whether its main process runs."""
        return self.process.poll() is None

    @property
    def child(self) -> int:
        """The process that runs the tasks."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def signal(self, number: int) -> None:
        """Signal the main process and its child at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def started(self) -> int:
        """How many tasks it has begun."""
        return self.log.read_text(errors="replace").count('"message": "task started"')

    def stop(self) -> None:
        """End it, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self.signal(signal.SIGKILL)
        self.process.wait()


class Lab:
    """A running broker and relay; workers and mails are up to the benchmark."""

    def __init__(self, folder: Path, stack: Stack, app: WarrenCelery, relay: Relay, port: int, ca: Path) -> None:
        self.folder, self.stack, self.app, self.relay = folder, stack, app, relay
        self.workers: list[Worker] = []
        self.environment = {
            **stack.environment("worker-email"),
            "SMTP_HOST": "localhost",
            "SMTP_PORT": str(port),
            "SMTP_CA": str(ca),
            "BROKER_HEARTBEAT": "5",
        }
        self.port = port

    def worker(self, **changes: str) -> Worker:
        """Start a worker; `Worker.wait` tells when it is there."""
        made = Worker(self, **changes)
        self.workers.append(made)
        return made

    def send(self, subject: str, to: str = "ada@example.com", **kwargs: Any) -> Any:
        """Enqueue a mail."""
        return self.app.send_task(TASK, [to, subject, "A mail of the benchmark.\n"], kwargs)

    def waiting(self, queue: str = "email") -> int:
        """How many messages are ready in a queue."""
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            count: int = channel.queue_declare(queue, passive=True).message_count
            return count

    def reasons(self) -> Counter[str]:
        """Why the dead letters are there."""
        found: Counter[str] = Counter()
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            while (message := channel.basic_get("email.dead")) is not None:
                found[str(message.headers.get(REASON))] += 1
        return found

    def clear(self) -> None:
        """Stop the workers and empty the queues."""
        while self.workers:
            self.workers.pop().stop()
        with self.app.connection_for_write() as connection, connection.channel() as channel:
            for queue in ("email", "email.dead"):
                channel.queue_purge(queue)
        self.relay.begun.clear()
        self.relay.taken.clear()


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """A lab in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="warren-bench-") as name, Stack(Path(name) / "home") as stack:
        stack.prepare()
        stack.broker.start()
        relay, port = Relay(Path(name) / "mail"), free_port()
        identity = Authority.ensure(stack.folder / "certs").server(["localhost"], role="relay")
        password = (stack.folder / "secrets" / "smtp").read_text().strip()
        server = controller(
            "127.0.0.1", port, relay, cert=identity.cert, key=identity.key, user="warren", password=password
        )
        server.start()
        made = None
        try:
            with create_app(Settings.from_env(stack.environment("operator"))) as app:
                made = Lab(Path(name), stack, app, relay, port, identity.ca)
                yield made
        finally:
            for worker in made.workers if made else []:
                worker.stop()
            server.stop()
            stack.broker.stop()
