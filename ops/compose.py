"""`python3 -m ops check --compose`: what the Docker engine would refuse before a service can say a word.

It needs nothing but Python and Docker, as the deployment does. Every problem is one line with its remedy.
"""

from __future__ import annotations

import argparse
import errno
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent
FILE = "docker-compose.rabbitmq.yml"
#: The first versions that mount a part of a volume, by which a service sees its own secrets only.
ENGINE, COMPOSE = (26, 0), (2, 26)
#: Seconds for an answer; asking a registry for an image takes longest.
TIMEOUT = 60
#: The variables that say where a service is published, and what is mounted where.
ADDRESSES = {
    "rabbitmq": "WARREN_AMQPS_ADDRESS",
    "exporter": "WARREN_EXPORTER_ADDRESS",
    "prometheus": "WARREN_PROMETHEUS_ADDRESS",
    "grafana": "WARREN_GRAFANA_ADDRESS",
    "flower": "WARREN_FLOWER_ADDRESS",
}
MOUNTS = {"/given/smtp-password": "SMTP_PASSWORD_FILE", "/given/smtp-ca": "SMTP_CA", "/given/secrets": "WARREN_SECRETS"}
IMAGES = {
    "rabbitmq": "RABBITMQ_IMAGE",
    "valkey": "VALKEY_IMAGE",
    "prometheus": "PROMETHEUS_IMAGE",
    "grafana": "GRAFANA_IMAGE",
}
GIB = 2**30


class Refused(Exception):
    """Docker cannot be asked any further; the message names the remedy."""


def docker(*arguments: str) -> str:
    """What Docker prints.

    Raises:
        Refused: it is missing, fails or does not answer; the message is its last line.
    """
    try:
        done = subprocess.run(  # noqa: PLW1510 - looked at below
            ["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Refused(str(exc)) from exc
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Refused(lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout.strip()


def version(text: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def versions() -> tuple[str, str]:
    """The engine's and Compose's versions.

    Raises:
        Refused: one is missing or too old.
    """
    if shutil.which("docker") is None:
        raise Refused("docker is not installed: install Docker Engine 26 or newer with its Compose plugin")
    try:
        engine = docker("version", "--format", "{{.Server.Version}}")
    except Refused as exc:
        raise Refused(f"Docker does not answer ({exc}): start it, or join the group docker") from exc
    if version(engine) < ENGINE:
        raise Refused(f"Docker Engine {engine} cannot mount a part of a volume: update it to 26 or newer")
    try:
        compose = docker("compose", "version", "--short")
    except Refused as exc:
        raise Refused(f"the Compose plugin does not answer ({exc}): install Compose 2.26 or newer") from exc
    if version(compose) < COMPOSE:
        raise Refused(f"Compose {compose} is too old for this file: update it to 2.26 or newer")
    return engine, compose


def problems(command: Sequence[str]) -> Iterator[str]:
    """What is wrong for the services that `command`, a `docker compose` with its options, would start.

    Raises:
        Refused: Compose does not take the file.
    """
    try:
        services: dict[str, Any] = json.loads(docker(*command, "config", "--format", "json"))["services"]
    except Refused as exc:
        raise Refused(f"Compose refuses the file or a variable in it ({exc}): correct it, or update Compose") from exc
    yield from memory(services)
    yield from mounts(services)
    yield from images(services)
    yield from ports(services, taken(command))


def memory(services: dict[str, Any]) -> Iterator[str]:
    """Whether all services may use what they are allowed to at once."""
    total = int(docker("info", "--format", "{{.MemTotal}}"))
    needed = limits(services)
    if total < needed:
        yield (
            f"the services may use {needed / GIB:.1f} GiB together, the engine has {total / GIB:.1f} GiB: "
            "give it more memory, or start fewer replicas"
        )


def limits(services: dict[str, Any]) -> int:
    """The sum of the limits of what stays up, in bytes."""
    return sum(
        int(found["mem_limit"]) * int(found.get("scale") or found.get("deploy", {}).get("replicas") or 1)
        for found in services.values()
        if found.get("restart") != "no"
    )


def mounts(services: dict[str, Any]) -> Iterator[str]:
    """Files of the host that are not there."""
    for target, source in sorted(
        {
            (volume["target"], volume["source"])
            for found in services.values()
            for volume in found.get("volumes", [])
            if volume["type"] == "bind"
        }
    ):
        if not Path(source).exists():
            yield f"{MOUNTS.get(target, target)}: {source} does not exist: give the path of an existing one"


def images(services: dict[str, Any]) -> Iterator[str]:
    """Images that are neither here nor to be had."""
    for image, name in sorted(
        {found["image"]: name for name, found in services.items() if "build" not in found}.items()
    ):
        try:
            docker("image", "inspect", "--format", "{{.Id}}", image)
        except Refused:
            try:
                docker("manifest", "inspect", image)
            except Refused as exc:
                remedy = f"correct {IMAGES.get(name, 'its name')}, or log in to its registry"
                yield f"{name}: image {image} cannot be had ({exc}): {remedy}"


def taken(command: Sequence[str]) -> set[int]:
    """Ports that this deployment itself publishes already."""
    lines = docker(*command, "ps", "--format", "json").splitlines()
    return {publisher["PublishedPort"] for line in lines for publisher in json.loads(line).get("Publishers") or []}


def ports(services: dict[str, Any], own: set[int]) -> Iterator[str]:
    """Addresses that cannot be published at."""
    for name, found in services.items():
        for port in found.get("ports", []):
            host, number = port.get("host_ip") or "0.0.0.0", int(port["published"])  # noqa: S104 - as Docker takes it
            if number in own:
                continue
            problem = occupied(host, number)
            if problem:
                yield f"{name}: {host}:{number} {problem}, or set {ADDRESSES.get(name, 'its address')} to another"


def occupied(host: str, port: int) -> str | None:
    """Why nothing can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return "is in use: stop what listens there"
            if exc.errno == errno.EADDRNOTAVAIL:
                return "is no address of this machine: use one of its own"
    return None  # a port below 1024 may be the engine's to take, not ours


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, and print each problem on a line of its own.

    Returns:
        0 where the deployment can be started, else 1.
    """
    parser = argparse.ArgumentParser(prog="python3 -m ops check --compose", description="Before `docker compose up`.")
    parser.add_argument("--compose", action="store_true", help="this check")
    parser.add_argument("--file", default=FILE, help=f"the Compose file; {FILE} by default")
    parser.add_argument("--profile", action="append", default=[], help="as you would give to `docker compose`")
    asked = parser.parse_args(arguments)
    command = ["compose", "--file", asked.file]
    for profile in asked.profile:
        command += ["--profile", profile]
    try:
        engine, compose = versions()
        found = list(problems(command))
    except Refused as exc:
        found = [str(exc)]
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"Docker Engine {engine} and Compose {compose} can start {asked.file}")
    return 1 if found else 0
