"""The exporter without a broker: depth that is never a false zero, scrapes that stand alone, settings, pages."""

from __future__ import annotations

import base64
import contextlib
import datetime
import gzip
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ops import validity
from ops.certs import Authority
from ops.checkpoint import Checkpoint
from ops.depth import Depth
from ops.errors import OpsError, UnreachableError
from ops.exporter import Exporter, ExporterSettings, Scrape, main, usable_checkpoint
from ops.exposition import KeptFamily, Rendering, expose
from ops.management import Management, ManagementSettings
from ops.ports import free_port
from ops.receiver import Receiver
from ops.totals import Totals
from ops.web import Server, Site, WebSettings
from queues.environment import Reader, Secret
from queues.errors import ConfigurationError
from queues.settings import BrokerSettings, TlsFiles
from queues.topology import QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DELAYS = [f"celery_delayed_{level}" for level in range(28)]
PLAIN = {
    "BROKER_PLAINTEXT": "1",
    "BROKER_USER": "exporter",
    "BROKER_PASSWORD": "secret",
    "MANAGEMENT_URL": "http://127.0.0.1:15672",
}


def row(name: str, ready: int = 0, unacknowledged: int = 0, consumers: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "running",
        "messages_ready": ready,
        "messages_unacknowledged": unacknowledged,
        "consumers": consumers,
    } | changes


def healthy() -> dict[str, dict[str, Any]]:
    """A broker's answer, by queue."""
    rows = [row(queue.name, 10, 2, 3) for queue in QUEUES]
    rows += [row(queue.dead_letter) for queue in QUEUES]
    rows += [row(name) for name in ("undeliverable", *DELAYS, "metrics.main", "math@host.celery.pidbox")]
    return {item["name"]: item for item in rows}


class FakeBroker:
    """A management client whose answer the test makes."""

    def __init__(self) -> None:
        self.rows = healthy()
        self.error: Exception | None = None
        self.calls = self.node_calls = 0
        self.now = 1_760_000_000.0
        self.nodes = [{"name": "rabbit@a", "mem_alarm": False, "disk_free_alarm": False}]
        self.node_error: Exception | None = None
        self.due: dict[str, float] = {}

    def queues(self) -> list[dict[str, Any]]:
        self.calls += 1
        if self.error:
            raise self.error
        return list(self.rows.values())

    def ask_nodes(self) -> list[dict[str, Any]]:
        self.node_calls += 1
        if self.node_error:
            raise self.node_error
        return self.nodes

    def depth(self) -> Depth:
        return Depth(self.queues, self.ask_nodes, due=self.due.get, clock=lambda: self.now)


def samples(collect: Callable[[], Iterator[Metric]]) -> dict[str, float]:
    """Every sample as Prometheus would write it."""

    class Collector:
        def collect(self) -> Iterator[Metric]:
            return collect()

    registry = CollectorRegistry()
    registry.register(Collector())
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def scraped(depth: Depth) -> dict[str, float]:
    """A scrape of the broker's collector, without the times."""
    found = samples(Scrape({"broker": depth.collect}).collect)
    return {name: value for name, value in found.items() if "duration" not in name and "build" not in name}


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


def test_depth_is_what_the_broker_says(broker: FakeBroker) -> None:
    broker.rows["math"] = row("math", 7, 2, 1)
    broker.rows["math.dead"] = row("math.dead", 3, 1)
    broker.rows["undeliverable"] = row("undeliverable", 5)
    broker.rows["celery_delayed_3"] = row("celery_delayed_3", 4)
    broker.rows["celery_delayed_20"] = row("celery_delayed_20", 6)
    # Due, and no queue takes them: neither ready nor held.
    broker.rows["celery_delayed_0"] = row("celery_delayed_0", messages_dlx=2)
    broker.rows["math"]["messages_dlx"] = 1
    broker.rows["math.dead"]["message_bytes"] = 4096
    found = scraped(broker.depth())
    assert {name: value for name, value in found.items() if "queue=" not in name or "math" in name} == {
        "celery_broker_up": 1,
        'celery_queue_up{queue="math"}': 1,
        'celery_queue_messages_ready{queue="math"}': 7,
        'celery_queue_messages_unacknowledged{queue="math"}': 2,
        'celery_queue_messages_dead_lettering{queue="math"}': 1,
        'celery_queue_consumers{queue="math"}': 1,
        'celery_dead_letter_bytes{queue="math"}': 4096,
        'celery_dead_letter_messages{queue="math"}': 4,
        "celery_undeliverable_messages": 5,
        "celery_delayed_messages": 12,
        "celery_delayed_blocked_messages": 2,
        'celery_broker_alarm{resource="memory"}': 0,
        'celery_broker_alarm{resource="disk"}': 0,
        'celery_exporter_collector_success{collector="broker"}': 1,
    }
    assert len([name for name in found if name.startswith("celery_queue_messages_ready")]) == len(QUEUES.names)


def test_what_came_and_went_where_the_broker_counts(broker: FakeBroker) -> None:
    broker.rows["math"] |= {"message_stats": {"publish": 9, "ack": 7, "redeliver": 2}}
    broker.rows["image"] |= {"message_stats": {"publish": 1}}
    broker.rows["email"] |= {"message_stats": []}
    found = {name: value for name, value in scraped(broker.depth()).items() if name.endswith(("total", '"}'))}
    assert {name: value for name, value in found.items() if "_total{" in name} == {
        'celery_queue_messages_published_total{queue="math"}': 9,
        'celery_queue_messages_published_total{queue="image"}': 1,
        'celery_queue_messages_acknowledged_total{queue="math"}': 7,
        'celery_queue_messages_redelivered_total{queue="math"}': 2,
    }


OLDEST = 'celery_queue_oldest_message_timestamp_seconds{queue="math"}'


def test_how_old_the_oldest_message_can_be(broker: FakeBroker) -> None:
    depth, now = broker.depth(), broker.now
    # Neither seen empty, nor has a worker started anything: not known.
    assert OLDEST not in scraped(depth)
    broker.now += 10
    broker.due["math"] = now - 300
    assert scraped(depth)[OLDEST] == now - 300
    broker.now += 10
    broker.rows["math"]["messages_ready"] = 0
    assert OLDEST not in scraped(depth)
    empty = broker.now - 5
    broker.now += 100
    broker.rows["math"]["messages_ready"] = 1
    assert scraped(depth)[OLDEST] == empty
    broker.now += 10
    broker.due["math"] = empty + 60
    assert scraped(depth)[OLDEST] == empty + 60
    # A classic queue knows it itself.
    broker.now += 10
    broker.rows["math"]["head_message_timestamp"] = int(empty) + 90
    assert scraped(depth)[OLDEST] == int(empty) + 90


def test_an_alarm_of_any_node(broker: FakeBroker) -> None:
    broker.nodes = [
        {"name": "rabbit@a", "mem_alarm": False, "disk_free_alarm": False},
        {"name": "rabbit@b", "mem_alarm": False, "disk_free_alarm": True},
        {"name": "rabbit@c", "running": False},
    ]
    found = scraped(broker.depth())
    assert found['celery_broker_alarm{resource="memory"}'] == 0
    assert found['celery_broker_alarm{resource="disk"}'] == 1


def test_alarms_that_are_not_known_have_no_sample(broker: FakeBroker) -> None:
    broker.nodes = [{"name": "rabbit@c", "running": False}]
    assert not [name for name in scraped(broker.depth()) if "alarm" in name]
    broker.node_error = OpsError("refused: check the user")
    found = scraped(broker.depth())
    assert not [name for name in found if "alarm" in name]
    assert found['celery_exporter_collector_success{collector="broker"}'] == 0
    assert found['celery_queue_messages_ready{queue="math"}'] == 10


def test_an_empty_queue_is_a_true_zero(broker: FakeBroker) -> None:
    broker.rows["math"] = row("math")
    found = scraped(broker.depth())
    assert found['celery_queue_messages_ready{queue="math"}'] == 0
    assert found['celery_queue_up{queue="math"}'] == 1


@pytest.mark.parametrize(
    "unknown",
    [
        None,
        {"name": "math", "state": "running"},
        {"name": "math", "state": "running", "messages_ready": 0, "messages_unacknowledged": 0},
        row("math", messages_ready=None),
        row("math", state="down"),
        row("math", state="minority"),
    ],
)
def test_an_unknown_queue_is_down_and_has_no_number(broker: FakeBroker, unknown: dict[str, Any] | None) -> None:
    if unknown is None:
        del broker.rows["math"]
    else:
        broker.rows["math"] = unknown
    found = scraped(broker.depth())
    assert [(name, value) for name, value in found.items() if '"math"' in name] == [
        ('celery_queue_up{queue="math"}', 0),
        ('celery_dead_letter_messages{queue="math"}', 0),
    ]
    assert found['celery_queue_messages_ready{queue="image"}'] == 10


@pytest.mark.parametrize(
    ("missing", "metric"),
    [
        ("math.dead", 'celery_dead_letter_messages{queue="math"}'),
        ("undeliverable", "celery_undeliverable_messages"),
        ("celery_delayed_27", "celery_delayed_messages"),
        ("celery_delayed_27", "celery_delayed_blocked_messages"),
    ],
)
def test_a_part_is_not_told_for_the_whole(broker: FakeBroker, missing: str, metric: str) -> None:
    assert metric in scraped(broker.depth())
    del broker.rows[missing]
    assert metric not in scraped(broker.depth())


def test_a_broker_that_does_not_answer(broker: FakeBroker) -> None:
    broker.error = UnreachableError("it is away: start it")
    assert scraped(broker.depth()) == {
        "celery_broker_up": 0,
        **{f'celery_queue_up{{queue="{name}"}}': 0 for name in QUEUES.names},
        'celery_exporter_collector_success{collector="broker"}': 0,
    }
    # It would only take another timeout.
    assert broker.node_calls == 0


def test_scrapes_within_a_second_share_one_call(broker: FakeBroker) -> None:
    depth = broker.depth()
    first = scraped(depth)
    broker.rows["math"] = row("math", 99)
    broker.now += 0.9
    assert scraped(depth) == first
    assert (broker.calls, broker.node_calls) == (1, 1)
    broker.now += 0.2
    assert scraped(depth)['celery_queue_messages_ready{queue="math"}'] == 99
    assert (broker.calls, broker.node_calls) == (2, 2)
    # A clock that is set back does not keep an answer.
    broker.now -= 3600
    scraped(depth)
    assert broker.calls == 3


def test_an_error_is_shared_too_and_ends(broker: FakeBroker) -> None:
    depth = broker.depth()
    broker.error = OpsError("refused: check the user")
    scraped(depth)
    broker.error = None
    assert scraped(depth)["celery_broker_up"] == 0
    broker.now += 1
    assert scraped(depth)["celery_broker_up"] == 1
    assert broker.calls == 2


def test_a_collector_that_fails_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def good() -> Iterator[Metric]:
        yield GaugeMetricFamily("good", "Fine.", 1)

    def bad() -> Iterator[Metric]:
        yield GaugeMetricFamily("before", "Known.", 2)
        raise ZeroDivisionError("oh")

    scrape = Scrape({"bad": bad, "good": good})
    for _ in range(3):
        found = samples(scrape.collect)
        assert (found["good"], found["before"]) == (1, 2)
        assert found['celery_exporter_collector_success{collector="bad"}'] == 0
        assert found['celery_exporter_collector_success{collector="good"}'] == 1
        assert 0 <= found['celery_exporter_scrape_duration_seconds{collector="bad"}'] < 1
    assert [record.getMessage() for record in caplog.records] == ["collector bad: ZeroDivisionError: oh"]
    assert [name for name in found if name.startswith("celery_exporter_build_info{")]


class FakeMessage:
    """A delivery."""

    def __init__(self, body: str, tag: int, acknowledged: list[tuple[int, bool]]) -> None:
        self.body, self.delivery_tag = body, tag
        self.acknowledged = acknowledged
        self.channel = self

    def basic_ack(self, tag: int, *, multiple: bool) -> None:
        self.acknowledged.append((tag, multiple))


def snapshot(seq: int, started: int) -> str:
    message = {
        "version": 1,
        "incarnation": "one",
        "worker": "math@host",
        "queue": "math",
        "seq": seq,
        "started_at": 1.0,
        "full": True,
        "bounds": QUEUES.queue("math").buckets,
        "gauges": {},
        "series": [["started", "math.add", "", started], ["wait", "math.add", "", [0.5, *[1] * 17]]],
    }
    return json.dumps(message)


STARTED = 'celery_task_started_total{queue="math",task="math.add"}'


def test_a_message_that_is_no_snapshot_is_acknowledged_and_counted() -> None:
    totals, acknowledged = Totals(), list[tuple[int, bool]]()
    receiver = Receiver(BrokerSettings(), "main", totals)
    receiver._receive(FakeMessage("nonsense", 7, acknowledged))
    receiver._settle()
    assert acknowledged == [(7, True)]
    assert samples(totals.collect)["celery_exporter_snapshots_malformed_total"] == 1


def test_sums_are_written_down_then_shown_then_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals, acknowledged = Totals(), list[tuple[int, bool]]()
    checkpoint = Checkpoint(tmp_path, "main")
    receiver = Receiver(BrokerSettings(), "main", totals, checkpoint)
    receiver._receive(FakeMessage(snapshot(1, 3), 1, acknowledged))
    receiver._receive(FakeMessage(snapshot(2, 5), 2, acknowledged))
    assert (acknowledged, STARTED in samples(totals.collect)) == ([], False)
    save = checkpoint.save

    def fail(_state: Any) -> None:
        raise OSError(28, "No space left on device")

    def success() -> float:
        scrape = Scrape({"snapshots": receiver.collect})
        return samples(scrape.collect)['celery_exporter_collector_success{collector="snapshots"}']

    receiver.consuming, receiver.problem = True, ""
    assert success() == 1
    monkeypatch.setattr(checkpoint, "save", fail)
    receiver._settle()
    assert (acknowledged, STARTED in samples(totals.collect)) == ([], False)
    assert "No space left on device" in receiver.problem
    # The alert WarrenExporterStale looks at this.
    assert success() == 0

    def look(state: Any) -> None:
        assert (acknowledged, STARTED in samples(totals.collect)) == ([], False)
        save(state)

    monkeypatch.setattr(checkpoint, "save", look)
    publish = totals.publish

    def shown() -> None:
        assert acknowledged == []
        publish()

    monkeypatch.setattr(totals, "publish", shown)
    receiver._settle()
    assert acknowledged == [(2, True)]
    assert samples(totals.collect)[STARTED] == 5
    assert receiver.problem == ""
    assert success() == 1
    second = Totals()
    Checkpoint(tmp_path, "main").load(second.restore)
    assert samples(second.collect)[STARTED] == 5


def test_a_checkpoint_of_ours_is_not_loaded_over_what_came_since(tmp_path: Path) -> None:
    ours, other = Checkpoint(tmp_path, "main"), Checkpoint(tmp_path, "main")
    taken: list[Any] = []
    ours.load(taken.append)
    ours.save({"a": 1})
    ours.load(taken.append)
    assert taken == []
    other.load(taken.append)
    other.save({"a": 2})
    ours.load(taken.append)
    ours.load(taken.append)
    assert taken == [{"a": 1}, {"a": 2}]
    assert [path.name for path in tmp_path.iterdir()] == ["exporter-main.json.gz"]


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", gzip.compress(b"[]"), gzip.compress(b'{"version": 9}'), gzip.compress(b"{}")[:-5]],
    ids=["empty", "nonsense", "list", "version", "cut"],
)
def test_a_damaged_checkpoint_is_moved_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint(tmp_path, "main")
    checkpoint.path.write_bytes(content)
    checkpoint.load(Totals().restore)
    assert [path.name for path in tmp_path.iterdir()] == ["exporter-main.json.gz.damaged"]
    assert "counting begins anew" in caplog.text


def test_a_checkpoint_with_a_state_of_nonsense(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "main").save({"totals": 7})
    Checkpoint(tmp_path, "main").load(Totals().restore)
    assert [path.name for path in tmp_path.iterdir()] == ["exporter-main.json.gz.damaged"]


@pytest.mark.parametrize("folder", [None, "missing"])
def test_without_a_folder_it_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str | None
) -> None:
    changes = {} if folder is None else {"EXPORTER_STATE_DIR": str(tmp_path / folder)}
    assert usable_checkpoint(ExporterSettings.from_env(PLAIN | changes)) is None
    assert "EXPORTER_STATE_DIR" in caplog.text
    assert "counter resets" in caplog.text
    assert usable_checkpoint(ExporterSettings.from_env(PLAIN | {"EXPORTER_STATE_DIR": str(tmp_path)})) is not None
    assert list(tmp_path.iterdir()) == []


def test_the_exporters_own_queue_cannot_grow_or_stay_for_ever() -> None:
    declared: dict[str, Any] = {}

    class Channel:
        def queue_declare(self, name: str, **options: Any) -> None:
            declared["queue"] = (name, options)

        def queue_bind(self, *names: str) -> None:
            declared["bind"] = names

        def basic_qos(self, size: int, number: int, a_global: bool) -> None:
            declared["qos"] = (number, a_global)

        def basic_consume(self, name: str, **options: Any) -> None:
            declared["consume"] = (name, options["exclusive"], options.get("no_ack", False))

    Receiver(BrokerSettings(), "second", Totals())._subscribe(Channel())
    name, options = declared["queue"]
    assert name == "metrics.second"
    assert (options["durable"], options["exclusive"], options["auto_delete"]) == (True, False, False)
    assert options["arguments"] == {
        "x-queue-type": "classic",
        "x-expires": 86_400_000,
        "x-max-length-bytes": 16_777_216,
        "x-overflow": "drop-head",
    }
    assert declared["bind"] == ("metrics.second", "metrics")
    assert declared["consume"] == ("metrics.second", True, False)


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    """An exporter that serves nothing yet; its pages are asked for directly."""
    made = Exporter(ExporterSettings.from_env(PLAIN | {"EXPORTER_ADDRESS": f"127.0.0.1:{free_port()}"}))
    yield made
    made._server.server_close()


def ask(respond: Site, path: str, **headers: str) -> tuple[str, dict[str, str], bytes]:
    environ: dict[str, Any] = {"PATH_INFO": path, **headers}
    setup_testing_defaults(environ)
    answer: list[Any] = []
    body = b"".join(respond(environ, lambda status, found: answer.extend((status, dict(found)))))
    return answer[0], answer[1], body


def test_pages(exporter: Exporter) -> None:
    assert ask(exporter._respond, "/")[0] == "200 OK"
    assert b'href="/metrics"' in ask(exporter._respond, "/")[2]
    assert ask(exporter._respond, "/secret")[0] == "404 Not Found"
    assert ask(exporter._respond, "/-/healthy")[0] == "503 Service Unavailable"
    assert ask(exporter._respond, "/-/ready")[::2] == ("503 Service Unavailable", b"not connected to the broker yet\n")
    exporter.receiver.problem = ""
    assert ask(exporter._respond, "/-/ready")[0] == "200 OK"
    assert exporter.url.startswith("http://127.0.0.1:")


def login(user: str, password: str, kind: str = "Basic") -> str:
    return f"{kind} {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_a_login_is_asked_for_where_one_is_set() -> None:
    settings = WebSettings(host="127.0.0.1", port=0, user="prometheus", password=Secret("pä:ss"))
    site = Site(CollectorRegistry(), settings, healthy=lambda: "", ready=lambda: "")
    for authorization in ("", "Basic", "Basic nonsense", login("prometheus", "wrong"), login("x", "pä:ss")):
        status, headers, body = ask(site, "/metrics", HTTP_AUTHORIZATION=authorization)
        assert status == "401 Unauthorized"
        assert headers["WWW-Authenticate"].startswith("Basic ")
        assert b"EXPORTER_USER" in body
    assert ask(site, "/metrics", HTTP_AUTHORIZATION=login("prometheus", "pä:ss"))[0] == "200 OK"
    assert ask(site, "/metrics", HTTP_AUTHORIZATION=login("prometheus", "pä:ss", kind="Bearer"))[0].startswith("401")
    assert ask(site, "/", HTTP_AUTHORIZATION="")[0] == "401 Unauthorized"
    assert ask(site, "/-/ready")[0] == "200 OK"


def test_https_with_a_certificate_that_is_renewed(tmp_path: Path) -> None:
    identity = Authority.ensure(tmp_path).server(["localhost"])
    settings = WebSettings(host="127.0.0.1", port=0, cert=identity.cert, key=identity.key)
    site = Site(CollectorRegistry(), settings, healthy=lambda: "", ready=lambda: "")
    context = ssl.create_default_context(cafile=identity.ca)

    def serial(server: Server) -> str:
        with (
            socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secured,
        ):
            secured.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
            assert b"200 OK" in secured.recv(100)
            certificate = secured.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    with Server(settings, site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert server.url.startswith("https://127.0.0.1:")
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as plain:
                plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    assert b"HTTP" not in plain.recv(100)
            first = serial(server)
            identity.cert.unlink()
            Authority.ensure(tmp_path).server(["localhost"])
            assert serial(server) != first
        finally:
            server.shutdown()
            thread.join()


def test_a_pair_that_does_not_belong_together(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path)
    settings = WebSettings(host="127.0.0.1", port=0, cert=authority.server(["a"]).cert, key=authority.client("b").key)
    with pytest.raises(ConfigurationError, match="belong together"):
        Server(settings, Site(CollectorRegistry(), settings, healthy=lambda: "", ready=lambda: ""))


def test_how_long_certificates_are_valid(tmp_path: Path) -> None:
    identity = Authority.ensure(tmp_path).client("exporter")
    files = TlsFiles(ca=identity.ca, cert=identity.cert, key=identity.key)
    ends = {"broker": "Jun  1 12:00:00 2030 GMT", "management": None}
    found = samples(lambda: validity.collect(files, ends))
    name = 'celery_certificate_not_after_timestamp_seconds{certificate="%s"}'
    assert set(found) == {name % "broker", name % "client", name % "authority"}
    assert found[name % "broker"] == datetime.datetime(2030, 6, 1, 12, tzinfo=datetime.UTC).timestamp()
    assert (
        found[name % "client"]
        == x509.load_pem_x509_certificate(identity.cert.read_bytes()).not_valid_after_utc.timestamp()
    )
    identity.cert.write_text("-----BEGIN nothing")
    found = samples(Scrape({"certificates": lambda: validity.collect(files, ends)}).collect)
    assert name % "client" not in found
    assert name % "authority" in found
    assert found['celery_exporter_collector_success{collector="certificates"}'] == 0


@pytest.mark.parametrize("year", [1999, 2049, 2050, 2110])
def test_the_end_of_a_certificate_of_any_year(year: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 60)])
    end = datetime.datetime(year, 2, 28, 23, 59, 58, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 2**100 + 7).not_valid_after(end)
    builder = builder.not_valid_before(datetime.datetime(1980, 1, 1, tzinfo=datetime.UTC))
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    assert validity.not_after(der) == end.timestamp()
    for cut in range(0, 160, 7):
        with pytest.raises(ValueError, match=r"certificate|time data"):
            validity.not_after(der[:cut])


def test_metrics_in_both_formats_and_packed(exporter: Exporter) -> None:
    exporter._management.get = lambda *_, **__: list(healthy().values())  # type: ignore[method-assign]
    exporter.totals.apply(snapshot(1, 1))
    exporter.totals.publish()
    _, headers, plain = ask(exporter._respond, "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert int(headers["Content-Length"]) == len(plain)
    assert b"_created" not in plain
    for name in (b"process_resident_memory_bytes", b"celery_exporter_consuming 0.0", b"celery_broker_up 1.0"):
        assert name in plain
    modern_type = "application/openmetrics-text; version=1.0.0"
    _, headers, modern = ask(exporter._respond, "/metrics", HTTP_ACCEPT=modern_type)
    assert headers["Content-Type"].startswith(modern_type)
    parse: Callable[[str], Iterator[Metric]] = text_string_to_metric_families
    families = {family.name: family for family in parse(modern.decode())}
    assert families["celery_task_queue_wait_seconds"].type == "histogram"
    assert families["celery_exporter_build"].type == "info"
    _, headers, packed = ask(exporter._respond, "/metrics", HTTP_ACCEPT_ENCODING="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert b"celery_task_started_total" in gzip.decompress(packed)


def test_what_can_wait_waits_for_a_scrape_and_not_for_ever() -> None:
    rendering, passed = Rendering(), threading.Event()

    def wait() -> None:
        rendering.give_way()
        passed.set()

    rendering.PATIENCE = 3600.0
    with rendering:
        with rendering:
            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
        assert not passed.wait(0.05)
    assert passed.wait(10)
    thread.join()
    rendering.PATIENCE = 0.001
    with rendering:
        rendering.give_way()


def test_the_text_is_what_prometheus_client_writes(exporter: Exporter) -> None:
    totals = exporter.totals
    message = json.loads(snapshot(1, 12_345_678))
    message["series"] += [
        ["failures", "math.add", 'a "b" \\ c\nd %s', 2],
        ["runtime", "math.add", "succeeded", [1234567.5, *[3] * 17]],
    ]
    totals.apply(json.dumps(message))
    totals.publish()
    families = [*totals.collect(), GaugeMetricFamily("other", "Another.", 7)]

    class Given:
        def collect(self) -> list[Metric]:
            return [*families[-1:], *families[:-1]]

    others = [family for family in families if not isinstance(family, KeptFamily)]
    assert len(others) > 3
    for modern, write in ((False, generate_latest), (True, openmetrics_latest)):
        theirs = sorted(write(Given()).decode().splitlines())
        for _ in range(2):
            ours = expose(families, modern=modern).decode()
            assert sorted(ours.splitlines()) == theirs
            assert ours.endswith("# EOF\n") is modern
        assert b"".join(families[0].parts(modern=modern)).decode() in write(Given()).decode()  # type: ignore[attr-defined]


def test_settings(tmp_path: Path) -> None:
    changes = {
        "EXPORTER_ID": "two",
        "EXPORTER_ADDRESS": "[::1]:9999",
        "MANAGEMENT_URL": "HTTPS://Broker:15671/",
        "EXPORTER_STATE_DIR": "/somewhere",
        "EXPORTER_MAX_SERIES": "5000",
        "EXPORTER_USER": "prometheus",
        "EXPORTER_PASSWORD": "secret",
    }
    settings = ExporterSettings.from_env(PLAIN | changes)
    assert (settings.exporter_id, settings.web.host, settings.web.port) == ("two", "::1", 9999)
    assert (str(settings.state), settings.max_series, settings.web.user) == ("/somewhere", 5000, "prometheus")
    assert settings.management.url == "HTTPS://Broker:15671"
    defaults = ExporterSettings.from_env(PLAIN)
    assert (defaults.exporter_id, defaults.web.host, defaults.web.port) == ("main", "127.0.0.1", 9808)
    assert "secret" not in repr((defaults, settings))
    (tmp_path / "ca.pem").write_text("no certificate")
    broken = {"BROKER_PLAINTEXT": "0", "BROKER_CA": str(tmp_path / "ca.pem"), "MANAGEMENT_URL": "https://broker:15671"}
    with pytest.raises(ConfigurationError, match="BROKER_CA"):
        Management.from_env(PLAIN | broken)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"MANAGEMENT_URL": ""}, "MANAGEMENT_URL is missing"),
        ({"MANAGEMENT_URL": "broker:15671"}, "MANAGEMENT_URL is no address"),
        ({"MANAGEMENT_URL": "https://broker"}, "MANAGEMENT_URL is no address"),
        ({"MANAGEMENT_URL": "https://broker:x"}, "MANAGEMENT_URL is no address"),
        ({"MANAGEMENT_URL": "https://broker:15671/api"}, "MANAGEMENT_URL is no address"),
        ({"MANAGEMENT_URL": "https://me:pw@broker:15671"}, "MANAGEMENT_URL is no address"),
        ({"MANAGEMENT_URL": "http://broker:15672"}, "clear text"),
        ({"EXPORTER_ID": "a.b"}, "EXPORTER_ID"),
        ({"EXPORTER_ADDRESS": "nonsense:port"}, "EXPORTER_ADDRESS"),
        ({"EXPORTER_ADDRESS": "a:1,b:2"}, "EXPORTER_ADDRESS"),
        ({"BROKER_PASSWORD": ""}, "BROKER_PASSWORD_FILE"),
        ({"EXPORTER_MAX_SERIES": "many"}, "EXPORTER_MAX_SERIES"),
        ({"EXPORTER_USER": "prometheus"}, "EXPORTER_PASSWORD_FILE belong together"),
        ({"EXPORTER_CERT": __file__}, "EXPORTER_CERT"),
        (
            {"EXPORTER_USER": "p", "EXPORTER_PASSWORD": "pw", "EXPORTER_ADDRESS": "0.0.0.0:9808"},
            "password in clear text",
        ),
    ],
)
def test_wrong_settings_end_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: dict[str, str], named: str
) -> None:
    monkeypatch.setattr("workers.logs.configure", lambda _level: None)
    for name, value in (PLAIN | change).items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    said = capsys.readouterr().err
    assert named in said
    assert "pw" not in said
    assert len(said.splitlines()) <= 2


def test_a_taken_address_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exporter: Exporter
) -> None:
    monkeypatch.setattr("workers.logs.configure", lambda _level: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    address = exporter.url.removeprefix("http://").removesuffix("/metrics")
    for name, value in (PLAIN | {"EXPORTER_ADDRESS": address}).items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    assert f"EXPORTER_ADDRESS={address} cannot be used" in capsys.readouterr().err


class FakeApi(BaseHTTPRequestHandler):
    """A management API of few words."""

    protocol_version = "HTTP/1.1"
    connections: set[Any]
    answer: tuple[int, bytes]
    hang_up = False
    held: threading.Event | None = None
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        type(self).connections.add(self.client_address)
        type(self).asked.append((self.path, self.headers["Authorization"]))
        status, body = self.answer
        if self.held:
            self.held.wait(5)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.hang_up

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[tuple[type[FakeApi], Management]]:
    class Handler(FakeApi):
        answer = (200, b'[{"name": "math"}]')

    Handler.connections, Handler.asked = set(), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        broker = BrokerSettings(user="exporter", password=Secret("pä"), vhost="/")
        management = Management(ManagementSettings(broker=broker, url=f"http://127.0.0.1:{server.server_port}"))
        yield Handler, management
        management.close()
        server.shutdown()
        thread.join()


def test_one_connection_is_kept(api: tuple[type[FakeApi], Management]) -> None:
    handler, management = api
    assert [management.queues() for _ in range(3)] == [[{"name": "math"}]] * 3
    assert len(handler.connections) == 1
    path, login = handler.asked[0]
    assert path.startswith("/api/queues/%2F?columns=name,state,messages,messages_ready,messages_unacknowledged,")
    assert login == "Basic ZXhwb3J0ZXI6cMOk"


def test_a_kept_connection_that_was_closed_is_replaced(api: tuple[type[FakeApi], Management]) -> None:
    handler, management = api
    handler.hang_up = True
    assert [management.queues() for _ in range(3)] == [[{"name": "math"}]] * 3
    assert len(handler.connections) == 3


@pytest.mark.parametrize(
    ("answer", "error", "named"),
    [
        ((401, b"{}"), OpsError, "BROKER_USER"),
        ((404, b"{}"), OpsError, "BROKER_VHOST"),
        ((200, b"<html>"), UnreachableError, "not answer in JSON"),
    ],
)
def test_answers_that_are_none(
    api: tuple[type[FakeApi], Management], answer: tuple[int, bytes], error: type[OpsError], named: str
) -> None:
    handler, management = api
    handler.answer = answer
    with pytest.raises(error, match=named) as caught:
        management.queues()
    assert type(caught.value) is error
    handler.answer = (200, b"[]")
    assert management.queues() == []


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(api: tuple[type[FakeApi], Management]) -> None:
    handler, management = api
    handler.held = held = threading.Event()
    management._connection.timeout = 0.05
    with pytest.raises(UnreachableError, match="timed out"):
        management.queues()
    held.set()
    handler.answer, handler.held = (200, b'[{"name": "new"}]'), None
    management._connection.timeout = 30
    assert management.queues() == [{"name": "new"}]


def test_no_answer_at_all() -> None:
    settings = ManagementSettings.read(Reader(PLAIN | {"MANAGEMENT_URL": "http://127.0.0.1:1"}))
    with pytest.raises(UnreachableError, match="MANAGEMENT_URL"):
        Management(settings).queues()


def test_definitions_of_one_virtual_host_and_the_version(api: tuple[type[FakeApi], Management]) -> None:
    handler, management = api
    document = {
        "rabbitmq_version": "3.10.8",
        "users": [{"name": "producer"}],
        "queues": [{"name": "math", "vhost": "/"}, {"name": "math", "vhost": "other"}],
    }
    handler.answer = (200, json.dumps(document).encode())
    assert management.definitions() == {"users": [{"name": "producer"}], "queues": [{"name": "math", "vhost": "/"}]}
    assert management.version() == (3, 10)
