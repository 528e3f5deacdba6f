"""A private RabbitMQ node, for one machine and one folder: TLS only, on 127.0.0.1 only, without epmd."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.errors import MissingProgramError, OpsError, UnreachableError
from ops.node import Node, Ports
from ops.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from ops.certs import Identity

START_SECONDS = 60.0
STOP_SECONDS = 30.0

_PLACES = (
    "/usr/lib/rabbitmq/bin",  # Debian; the wrapper in /usr/sbin refuses other users than root and rabbitmq
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
_LOG_LINES = 8


class EmbeddedBroker:
    """A private node; `start()` and `stop()`, or a `with` block, or `command()` for a process manager."""

    def __init__(
        self,
        folder: Path,
        *,
        server_cert: Path,
        server_key: Path,
        ca: Path,
        definitions: Mapping[str, Any],
        consumer_timeout_s: float,
        client: Identity | None = None,
        require_client_certificate: bool = True,
    ) -> None:
        """Describe the node; nothing is written or started yet.

        Args:
            folder: All that the node owns. One node at a time runs from it.
            server_cert: Certificate of AMQPS and of the management API.
            server_key: Its key.
            ca: Authority that signed it, and that clients' certificates are checked against.
            definitions: Imported at every start, with all users: RabbitMQ's guest is not made.
            consumer_timeout_s: Seconds that a delivery may stay unacknowledged.
            client: A client's certificate for the check at start; without one, the broker's refusal of a client
                that shows none is taken as its answer.
            require_client_certificate: Admit only clients that show a certificate of `ca` to AMQPS. The management
                API never asks for one.
        """
        self._node = Node(
            folder=folder.absolute(),
            cert=server_cert.absolute(),
            key=server_key.absolute(),
            ca=ca.absolute(),
            definitions=definitions,
            consumer_timeout_s=consumer_timeout_s,
            admission=require_client_certificate,
        )
        self.folder, self.ca = self._node.folder, self._node.ca
        self.definitions_path, self.log_path = self._node.definitions_path, self._node.log_path
        self._console = self.folder / "log" / "console.log"
        self._client = client
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def ports(self) -> Ports:
        """The ports of this node, known once it was prepared."""
        return self._node.ports

    @property
    def pid(self) -> int | None:
        """The process that `start()` started, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def running(self) -> bool:
        """Whether a node runs from this folder, whoever started it."""
        try:
            with (self.folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def prepare(self) -> None:
        """Write everything that the node reads. Ports that another program has taken since are replaced.

        Raises:
            OpsError: a node already runs from the folder, the folder cannot be written, or there is no RabbitMQ.
        """
        program = find_rabbitmq()
        if any(character in str(self.folder) for character in "#\n"):
            raise OpsError(f"RabbitMQ cannot read settings from {self.folder}: choose a folder without '#' in its path")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.running():
                raise OpsError(f"a broker already runs from {self.folder}: stop it first, or use another data folder")
            self._console.unlink(missing_ok=True)
            self._node.write(program)
        except OSError as exc:
            raise OpsError(
                f"cannot write the broker's folder {self.folder} ({exc.strerror}): remove it, or choose another"
            ) from exc

    def command(self) -> list[str]:
        """The node in the foreground, for a process manager. Call `prepare()` first.

        It replaces the environment by `Node.environment()`, and becomes the node by exec: a signal to the process that
        a manager started reaches the node, and its end is the node's end. SIGTERM stops it in an orderly way.
        """
        return ["/bin/sh", str(self.folder / "run")]

    def start(self, timeout_s: float = START_SECONDS) -> None:
        """Start the node and wait until it serves AMQPS and the management API.

        Args:
            timeout_s: Seconds to wait before the node is stopped again.

        Raises:
            OpsError: it cannot be started; what the node said follows the message.
        """
        self.prepare()
        # A session of its own: Ctrl-C in the terminal reaches whoever stops the node in its turn.
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        try:
            self.wait(timeout_s, alive=lambda: self.pid is not None)
        except BaseException:
            self.stop()
            raise

    def wait(self, timeout_s: float = START_SECONDS, *, alive: Callable[[], bool] = lambda: True) -> None:
        """Wait until the node serves AMQPS and the management API, whoever started it.

        Args:
            timeout_s: Seconds to wait.
            alive: Whether waiting still makes sense.

        Raises:
            OpsError: the node ended, its certificate is not accepted, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while alive():
            if self._serves_amqps() and self._serves_management():
                return
            if time.monotonic() > deadline:
                raise OpsError(
                    f"the broker did not serve within {timeout_s:.0f} s: see {self.folder}/log{self._reason()}"
                )
            time.sleep(0.1)
        raise OpsError(f"the broker ended while it started: see {self.folder}/log{self._reason()}")

    def stop(self, timeout_s: float = STOP_SECONDS) -> None:
        """Stop the node that `start()` started, in an orderly way if it can within `timeout_s` seconds (0: kill it)."""
        process = self._process
        if process is None:
            return
        if process.poll() is None and timeout_s > 0:
            self.ease_stop()
            process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None

    def ease_stop(self) -> None:
        """Make the stop that follows quick: 1 s instead of 6 s. A process manager's owner may call it before SIGTERM.

        When RabbitMQ 3.10 stops, the management plugin's event handler waits 5 s for a process that is already gone.
        """
        with contextlib.suppress(OpsError):
            self.ctl("eval", "gen_event:delete_handler(rabbit_event, rabbit_mgmt_db_handler, []).", timeout_s=5.0)

    def ctl(self, *args: str, timeout_s: float = 30.0) -> str:
        """Run `rabbitmqctl` against this node and give what it prints.

        Args:
            args: Its arguments.
            timeout_s: Seconds that it may take.

        Raises:
            UnreachableError: the node does not answer in time.
            OpsError: the command failed.
        """
        program = find_rabbitmq().with_name("rabbitmqctl")
        try:
            done = subprocess.run(
                [program, *args],
                env=self._node.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise UnreachableError(
                f"the broker did not answer within {timeout_s:.0f} s: see {self.log_path}, or restart it"
            ) from exc
        if done.returncode:
            lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            if not self.running():
                raise UnreachableError(f"no broker runs from {self.folder}: start it with `make up`")
            raise OpsError(f"rabbitmqctl {args[0]} failed: {lines[0] if lines else f'status {done.returncode}'}")
        return done.stdout

    def _serves_amqps(self) -> bool:
        """Whether an AMQP client gets as far as RabbitMQ's first frame (or its refusal, if we have no certificate)."""
        context = ssl.create_default_context(cafile=self.ca)
        if self._client:
            context.load_cert_chain(self._client.cert, self._client.key)
        expects_refusal = self._node.admission and self._client is None
        try:
            with (
                socket.create_connection((HOST, self.ports.amqps), timeout=2) as plain,
                context.wrap_socket(plain, server_hostname=HOST) as tls,
            ):
                if not expects_refusal:
                    tls.sendall(b"AMQP\x00\x00\x09\x01")
                return tls.recv(1) == b"\x01"
        except ssl.SSLCertVerificationError as exc:
            raise OpsError(f"the broker's own certificate is not accepted ({exc.verify_message}): renew it") from exc
        except ssl.SSLError as exc:
            return expects_refusal and "CERTIFICATE_REQUIRED" in (exc.reason or "")
        except OSError:
            return False

    def _serves_management(self) -> bool:
        """Whether the management API answers; that it asks for a password is an answer."""
        connection = http.client.HTTPSConnection(
            HOST, self.ports.management, timeout=2, context=ssl.create_default_context(cafile=self.ca)
        )
        try:
            connection.request("GET", "/api/overview")
            return connection.getresponse().status == http.HTTPStatus.UNAUTHORIZED
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _reason(self) -> str:
        """What the node said about its end: the lines around BOOT FAILED, or else the last ones."""
        try:
            lines = [line.rstrip() for line in self._console.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            return ""
        end = next((at for at, line in enumerate(lines) if "BOOT FAILED" in line), len(lines))
        return "".join(f"\n  {line}" for line in lines[max(0, end - _LOG_LINES) : end + _LOG_LINES])


def find_rabbitmq() -> Path:
    """The program that starts a node as any user.

    Raises:
        MissingProgramError: RabbitMQ is not installed.
    """
    for place in _PLACES:
        program = Path(place, "rabbitmq-server")
        if os.access(program, os.X_OK):
            return program
    raise MissingProgramError(
        "RabbitMQ is not installed: run `sudo apt-get install rabbitmq-server`, or `make demo` as root, "
        "or use docker-compose.rabbitmq.yml, which brings its own"
    )
