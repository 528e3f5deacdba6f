"""The table against docker-compose.rabbitmq.yml, Dockerfile and requirements; each failure names the file to edit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops import compose, definitions, provision, servers
from ops.given import Given
from queues.settings import Settings
from queues.topology import QUEUES, QueueSpec

ROOT = Path(__file__).parent.parent.parent
FILE = "docker-compose.rabbitmq.yml"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / FILE).read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LOOPBACK = re.compile(r"\$\{WARREN_[A-Z]+_ADDRESS:-127\.0\.0\.1:\d+\}:\d+")

#: The services that see every secret, and give each its owner.
ALL_SECRETS = ("provision", "apply")

every_queue = pytest.mark.parametrize("queue", QUEUES.queues, ids=QUEUES.names)
every_service = pytest.mark.parametrize("name", list(SERVICES))


def service(queue: QueueSpec) -> dict[str, Any]:
    assert queue.user in SERVICES, f"{FILE} has no service {queue.user}: copy another worker's, and name its queue"
    return SERVICES[queue.user]


def target_of(extra: str) -> str:
    """The Dockerfile's target for the workers of an extra."""
    return "worker" if extra == "worker" else f"worker-{extra}"


def requirements_of(path: str) -> dict[str, str]:
    """Each package with its version, marker and hashes, by name."""
    text = (ROOT / path).read_text(encoding="utf-8")
    logical = re.sub(r"\\\n\s*", " ", text).splitlines()
    return {line.partition("==")[0]: line for line in logical if line and not line.startswith("#")}


def size(text: str) -> int:
    """A size in bytes, as Compose, RabbitMQ and Valkey write it."""
    number, unit = re.fullmatch(r"(\d+)([kmg])(?:i?b)?", text.lower()).groups()  # type: ignore[union-attr]
    return int(number) * {"k": 2**10, "m": 2**20, "g": 2**30}[unit]


@every_queue
def test_worker_consumes_its_queue(queue: QueueSpec) -> None:
    command = service(queue)["command"]
    expected = ["celery", "-A", "workers.app", "worker", "-Q", queue.name]
    assert command[: len(expected)] == expected, f"{FILE}: the command of {queue.user} must begin {expected}"


@every_queue
def test_worker_has_the_tables_limits(queue: QueueSpec) -> None:
    found = service(queue)
    grace = f"{queue.stop_grace_period}s"
    assert found["stop_grace_period"] == grace, f"{FILE}: stop_grace_period of {queue.user} must be {grace}"
    assert found["mem_limit"] == queue.memory, f"{FILE}: mem_limit of {queue.user} must be {queue.memory}"


@every_queue
def test_worker_has_its_extras_image(queue: QueueSpec) -> None:
    target, found = target_of(queue.extra), service(queue)
    assert found["build"]["target"] == target, f"{FILE}: the build target of {queue.user} must be {target}"
    image = f"${{WARREN_IMAGE:-warren}}-{target}:${{WARREN_TAG:-dev}}"
    assert found["image"] == image, f"{FILE}: the image of {queue.user} must be {image}"
    assert f"FROM {target}-packages AS {target}\n" in DOCKERFILE, f"Dockerfile: add the target {target}"
    stage = DOCKERFILE.partition(f" AS {target}-packages\n")[2].partition("\nFROM ")[0]
    wanted = f"source=ops/requirements/{queue.extra}.txt"
    assert wanted in stage, f"Dockerfile: {target}-packages must install ops/requirements/{queue.extra}.txt"


@every_queue
def test_worker_is_its_own_user(queue: QueueSpec) -> None:
    found = service(queue)
    assert found["environment"]["BROKER_USER"] == queue.user, f"{FILE}: BROKER_USER of {queue.user} must be its name"


def test_no_worker_without_a_queue() -> None:
    extra = {name for name in SERVICES if name.startswith("worker-")} - {queue.user for queue in QUEUES}
    assert not extra, f"{FILE}: {', '.join(extra)} consume no queue of queues/topology.py: remove them"


def test_workers_can_be_scaled() -> None:
    """A fixed name or a published port would let only one replica run."""
    for name, found in SERVICES.items():
        assert "container_name" not in found, f"{FILE}: remove container_name from {name}, it prevents --scale"
        if name.startswith("worker-"):
            assert "ports" not in found, f"{FILE}: remove ports from {name}, they prevent --scale"


@every_service
def test_service_is_hardened(name: str) -> None:
    found = SERVICES[name]
    expected = {"init": True, "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    for key, value in expected.items():
        assert found.get(key) == value, f"{FILE}: {name} needs {key}: {value}"
    assert found["pids_limit"] > 0 < size(found["mem_limit"]), f"{FILE}: {name} needs pids_limit and mem_limit"
    if name not in ALL_SECRETS:
        assert "cap_add" not in found, f"{FILE}: {name} needs no capability: remove cap_add"
        assert found.get("user") != "0:0", f"{FILE}: {name} must not run as root"
    assert found["restart"] in ("no", "unless-stopped"), f"{FILE}: {name} needs restart: a crash must not be the end"


@every_service
def test_service_publishes_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert LOOPBACK.fullmatch(port), f"{FILE}: {name} must publish {port} as ${{WARREN_..._ADDRESS:-127.0.0.1:N}}:N"


def test_check_before_docker_names_the_files_variables() -> None:
    """`check --compose` says which variable to set: the one that the file reads."""
    published = {name: found["ports"][0][2:].partition(":-")[0] for name, found in SERVICES.items() if "ports" in found}
    assert published == compose.ADDRESSES, f"ops/compose.py: ADDRESSES must be {published}"
    mounted = {
        volume["target"]: volume["source"][2:].partition(":-")[0]
        for volume in SERVICES["provision"]["volumes"]
        if isinstance(volume, dict)
    }
    assert mounted == compose.MOUNTS, f"ops/compose.py: MOUNTS must be {mounted}"
    images = {name: found["image"][2:].partition(":-")[0] for name, found in SERVICES.items() if "build" not in found}
    assert images == compose.IMAGES, f"ops/compose.py: IMAGES must be {images}"


@every_service
def test_service_joins_what_it_needs(name: str) -> None:
    """Only what must reach a network is in it: beat and the exporter have no business with results."""
    networks = set(SERVICES[name].get("networks", []))
    both = {"broker", "results"}
    expected = {
        "apply": both,
        "beat": {"broker"},
        "check": {"broker"},
        "exporter": {"broker", "metrics", "pages"},
        "flower": {"broker", "pages"},
        "mail": {"mail"},
        "grafana": {"metrics", "pages"},
        "prometheus": {"broker", "metrics", "pages"},
        "provision": set(),
        "rabbitmq": {"broker", "producers"},
        "valkey": {"results"},
        "worker-email": both | {"mail"},
        "worker-monitor": both | {"metrics"},
    }.get(name, both)
    assert networks == expected, f"{FILE}: {name} must join {', '.join(sorted(expected))} and no other network"


def neighbours(name: str) -> set[str]:
    """The services that can reach a service: those that share a network with it."""
    own = set(SERVICES[name]["networks"])
    return {other for other, found in SERVICES.items() if own & set(found.get("networks", []))} - {name}


def test_only_clients_can_reach_broker_and_result_store() -> None:
    told = {name: found.get("environment", {}) for name, found in SERVICES.items()}
    brokers = {name for name, environment in told.items() if "BROKER_HOSTS" in environment}
    assert neighbours("rabbitmq") == brokers | {"prometheus"}, (
        f"{FILE}: who is no client shares a network with rabbitmq"
    )
    stores = {name for name, environment in told.items() if "valkey" in environment.get("RESULT_BACKEND", "")}
    assert neighbours("valkey") == stores | {"apply"}, f"{FILE}: who is no client shares a network with valkey"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the one-shot service makes, with this user as owner of everything."""
    folder = tmp_path_factory.mktemp("secrets")
    provision.Provision(folder, Given(), chown=lambda *_: None).run()
    return folder


def own_folder(name: str) -> str | None:
    """The part of the volume `secrets` that a service sees at /run/secrets."""
    for volume in SERVICES[name].get("volumes", []):
        if isinstance(volume, dict) and volume["source"] == "secrets":
            assert volume["target"] == servers.MOUNT, f"{FILE}: {name} must see its secrets at {servers.MOUNT}"
            assert volume["read_only"], f"{FILE}: {name} must not write its secrets"
            return str(volume["volume"]["subpath"])
    return None


@every_service
def test_secrets_that_a_service_is_told_of_exist(name: str, secrets: Path) -> None:
    folder = own_folder(name)
    special = {"ops": definitions.OPERATOR, "check": definitions.OPERATOR, "provision": None, "apply": None}
    expected = special.get(name, name)
    assert folder == expected, f"{FILE}: {name} must mount the subpath {expected} of the volume secrets"
    text = yaml.safe_dump({key: SERVICES[name].get(key) for key in ("command", "environment", "healthcheck")})
    for file in re.findall(rf"{servers.MOUNT}/([a-z.-]+[a-z])", text):
        assert (secrets / str(folder) / file).is_file(), (
            f"{FILE}: {name} is told of {file}, which provision never makes"
        )


@pytest.mark.parametrize("name", ["beat", "check", "flower", "ops", *(queue.user for queue in QUEUES)])
def test_settings_take_the_environment(name: str, secrets: Path) -> None:
    """The variables of every Celery service are complete and fit each other."""
    environ = {
        key: re.sub(r"\$\{\w+:?-(.*)\}", r"\1", str(value)).replace(servers.MOUNT, str(secrets / str(own_folder(name))))
        for key, value in SERVICES[name]["environment"].items()
    }
    settings = Settings.from_env({"RESULT_BACKEND": "disabled://", **environ}, worker=True)
    assert settings.broker.user in definitions.roles()
    assert settings.broker.hosts == (("rabbitmq", 5671),)


def test_stores_stay_below_their_containers_memory(secrets: Path) -> None:
    """Else the kernel kills them before they refuse more."""
    conf = (secrets / "rabbitmq" / "rabbitmq.conf").read_text(encoding="utf-8")
    watermark = size(re.findall(r"^vm_memory_high_watermark.absolute = (\w+)$", conf, re.MULTILINE)[0])
    assert watermark <= 0.6 * size(SERVICES["rabbitmq"]["mem_limit"]), f"ops/servers.py and {FILE}: rabbitmq's memory"
    conf = (secrets / "valkey" / "valkey.conf").read_text(encoding="utf-8")
    maximum = size(re.findall(r"^maxmemory (\w+)$", conf, re.MULTILINE)[0])
    # Rewriting the append-only file may double what it holds.
    assert 2 * maximum <= size(SERVICES["valkey"]["mem_limit"]), f"ops/servers.py and {FILE}: valkey's memory"


def test_prometheus_scrapes_the_exporter() -> None:
    config = yaml.safe_load((ROOT / "ops" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = config["scrape_configs"][0]["static_configs"][0]["targets"]
    port = SERVICES["exporter"]["environment"]["EXPORTER_ADDRESS"].rpartition(":")[2]
    assert targets == [f"exporter:{port}"], f"ops/prometheus/prometheus.yml: the target must be exporter:{port}"


@pytest.mark.parametrize("path", sorted((ROOT / "ops" / "requirements").glob("*.txt")), ids=lambda path: path.stem)
def test_images_install_what_is_pinned(path: Path) -> None:
    everything = requirements_of("requirements.txt")
    for name, line in requirements_of(str(path)).items():
        assert "--hash=sha256:" in line, f"{path.name}: {name} has no hash: run `make requirements`"
        assert everything.get(name) == line, (
            f"{path.name}: {name} differs from requirements.txt: run `make requirements`"
        )


def test_who_has_redis_has_what_celery_needs_with_it() -> None:
    """Celery falls back in silence: without `packaging` it knows no error of a connection to the result store."""
    for path in (ROOT / "ops" / "requirements").glob("*.txt"):
        found = requirements_of(str(path))
        assert "redis" not in found or "packaging" in found, f"pyproject.toml: {path.stem} needs packaging beside redis"


def test_only_the_image_worker_has_pillow() -> None:
    carriers = {
        path.stem for path in (ROOT / "ops" / "requirements").glob("*.txt") if "pillow" in requirements_of(str(path))
    }
    assert carriers == {"image", "local"}, "pyproject.toml: Pillow belongs to the extra image alone"


def test_dockerfile_needs_no_frontend_of_its_own() -> None:
    """A `# syntax=` line would make the builder pull an image, and fail where it cannot."""
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, re.MULTILINE), "Dockerfile: remove the syntax line"
    assert "HEALTHCHECK" not in DOCKERFILE, f"Dockerfile: a health check is a service's, in {FILE}"
