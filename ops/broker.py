"""A private RabbitMQ node, for one machine and one folder: TLS only, on 127.0.0.1 only, without epmd.

folder/rabbitmq.conf, definitions.json, enabled_plugins    written anew at every start
folder/ports.json, home/.erlang.cookie                     made once
folder/run                                                 starts the node in the foreground, by exec
folder/data, log                                           RabbitMQ's own
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import secrets
import shlex
import shutil
import socket
import ssl
import subprocess
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.certs import replace_file
from ops.errors import MissingProgramError, OpsError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from ops.certs import Identity

NODE = "warren@localhost"
HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 30.0

_PLACES = (
    "/usr/lib/rabbitmq/bin",  # Debian; the wrapper in /usr/sbin refuses other users than root and rabbitmq
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
# Below the range that the kernel takes for outgoing connections: a remembered port stays free.
_PORTS = range(20_000, 30_000)
_LOG_LINES = 8

# A deterministic small node: it shares the machine with the workers.
_CONF = """\
listeners.tcp = none
listeners.ssl.default = {host}:{amqps}
{amqps_tls}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = {admission}
ssl_options.depth = 1
ssl_handshake_timeout = 5000
auth_mechanisms.1 = PLAIN
management.ssl.ip = {host}
management.ssl.port = {management}
{management_tls}
load_definitions = {folder}/definitions.json
consumer_timeout = {consumer_timeout_ms}
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.relative = 0.4
raft.wal_max_size_bytes = 64000000
log.console = false
log.file.level = info
log.file.rotation.size = 10485760
log.file.rotation.count = 3
"""
_TLS_CONF = """\
{prefix}.cacertfile = {ca}
{prefix}.certfile = {cert}
{prefix}.keyfile = {key}
{prefix}.versions.1 = tlsv1.3
{prefix}.versions.2 = tlsv1.2"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a node listens, all on 127.0.0.1."""

    amqps: int
    management: int
    distribution: int

    @classmethod
    def load(cls, folder: Path) -> Ports:
        """The ports that the broker of `folder` was last given.

        Raises:
            OpsError: no broker was ever started from this folder.
        """
        try:
            return cls(**json.loads((folder / "ports.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError) as exc:
            raise OpsError(f"no broker was started from {folder} yet: run `make up`") from exc
        except OSError as exc:
            raise OpsError(f"cannot read {folder} ({exc.strerror}): run as its owner") from exc


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
        self.folder = folder.absolute()
        self.ca = ca.absolute()
        self.definitions_path = self.folder / "definitions.json"
        self.log_path = self.folder / "log" / "broker.log"
        self._console = self.folder / "log" / "console.log"
        self._cert, self._key = server_cert.absolute(), server_key.absolute()
        self._definitions = definitions
        self._consumer_timeout_s = consumer_timeout_s
        self._client = client
        self._admission = require_client_certificate
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
        return Ports.load(self.folder)

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
        find_rabbitmq()
        if any(character in str(self.folder) for character in "#\n"):
            raise OpsError(f"RabbitMQ cannot read settings from {self.folder}: choose a folder without '#' in its path")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.running():
                raise OpsError(f"a broker already runs from {self.folder}: stop it first, or use another data folder")
            for name in ("home", "log", "data"):
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            self._console.unlink(missing_ok=True)
            self._write_cookie()
            ports = self._choose_ports()
            # The ports first: the other files are made from them.
            replace_file(self.folder / "ports.json", json.dumps(asdict(ports)).encode(), 0o600)
            for name, text in {
                "rabbitmq.conf": self._conf(ports),
                "enabled_plugins": "[rabbitmq_management].\n",
                "definitions.json": json.dumps(self._definitions, indent=2),
                "run": self._run_script(),
            }.items():
                replace_file(self.folder / name, text.encode(), 0o600)
        except OSError as exc:
            raise OpsError(
                f"cannot write the broker's folder {self.folder} ({exc.strerror}): remove it, or choose another"
            ) from exc

    def command(self) -> list[str]:
        """The node in the foreground, for a process manager. Call `prepare()` first.

        It replaces the environment by `environment()`, and becomes the node by exec: a signal to the process that a
        manager started reaches the node, and its end is the node's end. SIGTERM stops it in an orderly way.
        """
        return ["/bin/sh", str(self.folder / "run")]

    def environment(self) -> dict[str, str]:
        """The node's whole environment, which is also that of its `rabbitmqctl`."""
        port = self.ports.distribution
        folder = self.folder
        return {
            "HOME": f"{folder}/home",  # holds the Erlang cookie
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            # The script then becomes the node; otherwise it stays as a parent that passes signals on.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            # Without the folder's name: RabbitMQ hands this path to a shell unquoted, to measure the free space.
            "RABBITMQ_MNESIA_BASE": "/proc/self/cwd/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_LOGS": str(self.log_path),
            "RABBITMQ_PID_FILE": f"{folder}/data/pid",
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            # Files that do not exist, so that nothing of /etc/rabbitmq is read.
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_CONFIG_FILES": f"{folder}/none/*.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/none.config",
            "ERL_CRASH_DUMP": f"{folder}/log/erl_crash.dump",
            # No epmd, neither our own nor a RabbitMQ's that already runs here: the distribution port is told, it
            # starts with the emulator so that RabbitMQ skips its start of epmd, and nobody listens at port 1.
            # RabbitMQ looks after epmd once a minute by starting an emulator: that one, and rabbitmqctl, inherit
            # ERL_FLAGS, which come behind the server's own arguments; the first of two flags counts.
            "ERL_EPMD_PORT": "1",
            "ERL_FLAGS": "-start_epmd false -dist_listen false",
            "RABBITMQ_CTL_ERL_ARGS": f"-erl_epmd_port {port}",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-sname {NODE} -dist_listen true -erl_epmd_port {port}"
                # Two schedulers are enough, and the break handler would stop the node at Ctrl-C before its clients.
                " -kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +B i"
            ),
        }

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
        """Stop the node that `start()` started, in an orderly way if it can within `timeout_s` seconds."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
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
                env=self.environment(),
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
        expects_refusal = self._admission and self._client is None
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

    def _conf(self, ports: Ports) -> str:
        files = {"ca": self.ca, "cert": self._cert, "key": self._key}
        return _CONF.format(
            host=HOST,
            amqps=ports.amqps,
            management=ports.management,
            amqps_tls=_TLS_CONF.format(prefix="ssl_options", **files),
            management_tls=_TLS_CONF.format(prefix="management.ssl", **files),
            admission=str(self._admission).lower(),
            folder=self.folder,
            consumer_timeout_ms=round(self._consumer_timeout_s * 1000),
        )

    def _run_script(self) -> str:
        """A script rather than arguments, so that no manager's quoting rules matter; flock tells of a running node."""
        if shutil.which("flock") is None:
            raise MissingProgramError("flock is missing: install util-linux (sudo apt-get install util-linux)")
        words = [f"{name}={value}" for name, value in self.environment().items()]
        words += ["flock", "--nonblock", "--no-fork", str(self.folder / "lock"), str(find_rabbitmq())]
        return f"#!/bin/sh\ncd {shlex.quote(str(self.folder))} && exec env -i {shlex.join(words)}\n"

    def _write_cookie(self) -> None:
        path = self.folder / "home" / ".erlang.cookie"
        if not path.exists():
            replace_file(path, secrets.token_hex(32).encode(), 0o400)

    def _choose_ports(self) -> Ports:
        known: dict[str, int] = {}
        with contextlib.suppress(OpsError):
            known = asdict(self.ports)
        chosen: dict[str, int] = {}
        for field in fields(Ports):
            port = known.get(field.name, 0)
            while port in chosen.values() or port not in _PORTS or not _is_free(port):
                port = secrets.choice(_PORTS)
            chosen[field.name] = port
        return Ports(**chosen)


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
        "or point BROKER_HOSTS to a broker that you have"
    )


def hash_password(password: str, salt: bytes | None = None) -> str:
    """A password as RabbitMQ keeps it in `password_hash` (rabbit_password_hashing_sha256).

    Args:
        password: The password.
        salt: 4 bytes; random unless given.

    Raises:
        ValueError: the salt has another length.
    """
    salt = secrets.token_bytes(4) if salt is None else salt
    if len(salt) != 4:
        raise ValueError("RabbitMQ's salt has 4 bytes")
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def generate_password() -> str:
    """A new password of 192 bits that needs no quoting in a URL."""
    return secrets.token_urlsafe(24)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
