"""New certificates, new passwords and a changed table while it runs; after each of them the broker restarts."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.compose.deployment import ROOT, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.compose.deployment import Deployment

pytestmark = pytest.mark.compose

CLIENTS = ("worker-math", "worker-image", "worker-email", "worker-monitor", "beat", "exporter", "flower")


def restart_broker(deployment: Deployment) -> None:
    """The broker imports its definitions file again, and everything works as before."""
    deployment.compose("restart", "rabbitmq")
    deployment.up()
    assert deployment.works()
    assert "broker and table agree" in deployment.operator("check")
    assert deployment.dead_letters() == []


def served(deployment: Deployment) -> bytes | None:
    """The certificate that the broker shows to a producer."""
    context = ssl.create_default_context(cafile=deployment.producer / "ca.crt")
    context.load_cert_chain(deployment.producer / "tls.crt", deployment.producer / "tls.key")
    with (
        socket.create_connection(("127.0.0.1", deployment.ports["AMQPS"]), 10) as plain,
        context.wrap_socket(plain, server_hostname="rabbitmq") as tls,
    ):
        return tls.getpeercert(binary_form=True)


def test_new_certificates(deployment: Deployment) -> None:
    fingerprint = "import ssl; print(hash(ssl.get_server_certificate(('valkey', 6379))))"
    ask_valkey = ("env", "PYTHONHASHSEED=0", "python", "-c", fingerprint)
    before, before_valkey = served(deployment), deployment.exec("worker-math", *ask_valkey)
    starts = deployment.starts()
    deployment.compose("run", "--rm", "-T", "apply", "--rotate", "certificates", "--yes")
    # Within two minutes by itself; at once when it is told to.
    deployment.exec("rabbitmq", "rabbitmqctl", "-q", "eval", "ssl:clear_pem_cache().")
    assert served(deployment) != before
    assert deployment.exec("worker-math", *ask_valkey) != before_valkey
    assert deployment.starts() == starts, "nothing was restarted"
    deployment.copy_producer()
    assert deployment.works()
    restart_broker(deployment)


def test_new_passwords(deployment: Deployment) -> None:
    starts = deployment.starts()
    old = deployment.exec("worker-math", "cat", "/run/secrets/results-password")
    deployment.compose("run", "--rm", "-T", "apply", "--rotate", "passwords", "--yes")
    assert deployment.starts() == starts, "nothing was restarted"
    again = deployment.refused("run", "--rm", "-T", "apply", "--rotate", "passwords", "--yes")
    assert "a rotation is under way" in again
    with pytest.raises(AssertionError, match=r"ACCESS_REFUSED|refused"):
        deployment.works()
    deployment.copy_producer()
    assert deployment.works(), "workers that still run show Valkey their old password"
    deployment.compose("restart", *CLIENTS)
    deployment.up()
    cli = ("valkey-cli", "--tls", "--cacert", "/run/secrets/ca.crt", "--no-auth-warning", "-a", old, "dbsize")
    assert "NOAUTH" not in deployment.exec("valkey", *cli)
    deployment.compose("run", "--rm", "-T", "apply")
    assert "NOAUTH" in deployment.exec("valkey", *cli), "the old password is still taken"
    assert deployment.works()
    restart_broker(deployment)


def changed_table(folder: Path, old: str, new: str) -> str:
    """A copy of `queues` with another table, as Compose mounts it over an image's own."""
    copy = folder / "queues"
    shutil.copytree(ROOT / "queues", copy, dirs_exist_ok=True)
    path = copy / "topology.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    for item in (folder, *copy.rglob("*")):
        item.chmod(0o755 if item.is_dir() else 0o644)
    return f"{copy}:/app/queues:ro"


def test_a_changed_table(deployment: Deployment, tmp_path: Path) -> None:
    single = changed_table(
        tmp_path / "a", "single_active_consumer: bool = False", "single_active_consumer: bool = True"
    )
    said = deployment.refused("run", "--rm", "-T", "-v", single, "apply", "--yes")
    assert "refused  queue math: arguments" in said
    assert "give the row a new name" in said
    mounted = changed_table(tmp_path / "b", "delivery_limit: int = 20", "delivery_limit: int = 10")
    assert "policy math: definition" in deployment.refused("run", "--rm", "-T", "--no-deps", "-v", mounted, "check")
    plan = deployment.compose("run", "--rm", "-T", "-v", mounted, "apply")
    assert "change   policy math: delivery-limit 20 -> 10" in plan
    assert "nothing was changed" in plan
    assert "broker and table agree" in deployment.operator("check")

    starts = deployment.starts()
    deployment.compose("run", "--rm", "-T", "-v", mounted, "apply", "--yes")
    assert deployment.starts() == starts, "nothing was restarted"
    deployment.compose("restart", "rabbitmq")
    # Workers of the old table are not stopped by it; `up` tells that their table is not the broker's.
    said = deployment.refused("up", "-d", "--wait")
    assert 'service "check" didn\'t complete successfully' in said
    assert "delivery-limit" in deployment.compose("logs", "--no-color", "check")
    assert deployment.works()
    deployment.compose("run", "--rm", "-T", "apply", "--yes")
    restart_broker(deployment)


def test_other_secrets_on_an_older_broker(deployment: Deployment) -> None:
    """The volume `secrets` is lost, those of the stores are kept: users get their new passwords, messages stay."""
    deployment.compose("stop", "worker-math")
    task = deployment.produce("from queues import tasks; print(tasks.add(20, 3).id)").strip()
    deployment.compose("--profile", "*", "down", "--timeout", "20")
    subprocess.run(["docker", "volume", "rm", f"{deployment.project}_secrets"], check=True, capture_output=True)
    deployment.up()
    with pytest.raises(AssertionError, match=r"certificate .*is not valid"):
        deployment.works()
    deployment.copy_producer()
    assert deployment.works()
    eventually(lambda: deployment.results(task) == [23], "the message is gone")
    assert deployment.dead_letters() == []
