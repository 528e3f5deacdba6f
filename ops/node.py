"""What a private RabbitMQ node reads, all in one folder: ports, configuration, environment, cookie, run script.

folder/rabbitmq.conf, definitions.json, enabled_plugins    written anew at every start
folder/ports.json, home/.erlang.cookie                     made once
folder/run                                                 starts the node in the foreground, by exec
folder/data, log                                           RabbitMQ's own
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ops.errors import MissingProgramError, OpsError
from ops.files import replace_file
from ops.ports import HOST, RANGE, free_port, keep

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NODE = "warren@localhost"

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
prometheus.ssl.ip = {host}
prometheus.ssl.port = {metrics}
{metrics_tls}
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
    #: RabbitMQ's own metrics.
    metrics: int = 0

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node on disk; all paths are absolute.

    Attributes:
        folder: All that the node owns.
        cert: Certificate of AMQPS and of the management API.
        key: Its key.
        ca: Authority that signed it, and that clients' certificates are checked against.
        definitions: Imported at every start.
        consumer_timeout_s: Seconds that a delivery may stay unacknowledged.
        admission: Whether AMQPS admits only clients that show a certificate.
    """

    folder: Path
    cert: Path
    key: Path
    ca: Path
    definitions: Mapping[str, Any] = field(repr=False)
    consumer_timeout_s: float
    admission: bool

    @property
    def ports(self) -> Ports:
        """The ports of this node, known once it was written."""
        return Ports.load(self.folder)

    @property
    def definitions_path(self) -> Path:
        """Where its definitions stand."""
        return self.folder / "definitions.json"

    @property
    def log_path(self) -> Path:
        """Where it writes its log."""
        return self.folder / "log" / "broker.log"

    def write(self, program: Path) -> None:
        """Write everything. Ports that another program has taken since are replaced.

        Args:
            program: Starts RabbitMQ.

        Raises:
            MissingProgramError: there is no `flock`.
            OSError: the folder cannot be written.
        """
        for name in ("home", "log", "data"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        self._write_cookie()
        ports = self._choose_ports()
        # The ports first: the other files are made from them.
        replace_file(self.folder / "ports.json", json.dumps(asdict(ports)).encode(), 0o600)
        for name, text in {
            "rabbitmq.conf": self._conf(ports),
            "enabled_plugins": "[rabbitmq_management,rabbitmq_prometheus].\n",
            "definitions.json": json.dumps(self.definitions, indent=2),
            "run": self._run_script(program),
        }.items():
            replace_file(self.folder / name, text.encode(), 0o600)

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

    def _conf(self, ports: Ports) -> str:
        files = {"ca": self.ca, "cert": self.cert, "key": self.key}
        return _CONF.format(
            host=HOST,
            amqps=ports.amqps,
            management=ports.management,
            amqps_tls=_TLS_CONF.format(prefix="ssl_options", **files),
            management_tls=_TLS_CONF.format(prefix="management.ssl", **files),
            metrics=ports.metrics,
            metrics_tls=_TLS_CONF.format(prefix="prometheus.ssl", **files),
            admission=str(self.admission).lower(),
            folder=self.folder,
            consumer_timeout_ms=round(self.consumer_timeout_s * 1000),
        )

    def _run_script(self, program: Path) -> str:
        """A script rather than arguments, so that no manager's quoting rules matter; flock tells of a running node."""
        if shutil.which("flock") is None:
            raise MissingProgramError("flock is missing: install util-linux (sudo apt-get install util-linux)")
        words = [f"{name}={value}" for name, value in self.environment().items()]
        words += ["flock", "--nonblock", "--no-fork", str(self.folder / "lock"), str(program)]
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
        for part in fields(Ports):
            port = known.get(part.name, 0)
            usable = port in RANGE and port not in chosen.values() and keep(port)
            chosen[part.name] = port if usable else free_port(chosen.values())
        return Ports(**chosen)
