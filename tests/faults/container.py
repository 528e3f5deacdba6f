"""RabbitMQ of docker-compose.rabbitmq.yml in a container of its own, with the certificates and passwords of a stack."""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import time
from typing import TYPE_CHECKING

from ops import definitions
from ops.errors import OpsError
from ops.passwords import hash_password
from ops.ports import free_port
from ops.provision import RABBITMQ_UID, identity_files
from ops.servers import MOUNT, RABBITMQ_CONF

if TYPE_CHECKING:
    from pathlib import Path

    from ops.certs import Authority
    from ops.local import Stack

IMAGE = "rabbitmq:4.3-management"
#: Seconds until a node in a container serves.
START = 120.0


class Container:
    """One container; made at the first start, kept over stops and kills, removed by `remove`."""

    name = "container"

    def __init__(self, stack: Stack, authority: Authority) -> None:
        self.port = free_port()
        self._name = f"warren-faults-{secrets.token_hex(4)}"
        self._client = authority.client(definitions.OPERATOR)
        self._made = False
        self.folder = stack.folder / "container"
        hashes = {role: hash_password((stack.folder / "secrets" / role).read_text()) for role in definitions.roles()}
        files = {
            **identity_files(authority.server(["localhost", "127.0.0.1"])),
            "rabbitmq.conf": RABBITMQ_CONF.encode(),
            "definitions.json": json.dumps(definitions.build(hashes, rabbitmq=(4, 3))).encode(),
        }
        self.folder.mkdir(mode=0o755)
        for file, content in files.items():
            path = self.folder / file
            path.write_bytes(content)
            path.chmod(0o400)
            os.chown(path, RABBITMQ_UID, RABBITMQ_UID)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl."""
        return self._docker("exec", self._name, "rabbitmqctl", *arguments)

    def start(self) -> None:
        """Start, and wait until it serves."""
        if self._made:
            self._docker("start", self._name)
        else:
            self._made = True
            settings = {
                "RABBITMQ_CONFIG_FILE": f"{MOUNT}/rabbitmq.conf",
                "RABBITMQ_NODENAME": "rabbit@localhost",
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
            }
            environment = [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
            self._docker(
                *("run", "--detach", "--name", self._name, "--user", "rabbitmq", "--ulimit", "nofile=16384:16384"),
                *("--publish", f"127.0.0.1:{self.port}:5671", "--volume", f"{self.folder}:{MOUNT}:ro"),
                *environment,
                IMAGE,
            )
        limit = time.monotonic() + START
        while not self._serves():
            if time.monotonic() > limit:
                raise OpsError(f"the container did not serve within {START:.0f} s: see `docker logs {self._name}`")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop in an orderly way."""
        self._docker("stop", "--time", "30", self._name)

    def kill(self) -> None:
        """SIGKILL."""
        self._docker("kill", self._name)

    def freeze(self, frozen: bool) -> None:
        """SIGSTOP, or SIGCONT."""
        if frozen != self._is("Paused"):
            self._docker("pause" if frozen else "unpause", self._name)

    def alive(self) -> bool:
        """Whether it was started, and neither stopped nor killed."""
        return self._is("Running")

    def remove(self) -> None:
        """Leave nothing."""
        subprocess.run(["docker", "rm", "--force", "--volumes", self._name], capture_output=True, timeout=60)

    @property
    def definitions_path(self) -> Path | str:
        """Where the node reads its definitions."""
        return f"{MOUNT}/definitions.json"

    def _is(self, state: str) -> bool:
        return self._docker("inspect", "--format", f"{{{{.State.{state}}}}}", self._name).strip() == "true"

    def _docker(self, *words: str) -> str:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=START)
        if done.returncode:
            raise OpsError(f"docker {words[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def _serves(self) -> bool:
        context = ssl.create_default_context(cafile=self._client.ca)
        context.load_cert_chain(self._client.cert, self._client.key)
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=3) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as tls,
            ):
                tls.sendall(b"AMQP\x00\x00\x09\x01")
                return tls.recv(1) == b"\x01"
        except OSError:
            return False
