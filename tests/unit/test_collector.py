"""The exporter without a broker: depth that is never a false zero, scrapes that stand alone, settings, pages."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ops.depth import Depth
from ops.errors import OpsError, UnreachableError
from ops.exporter import Exporter, ExporterSettings, Scrape, main
from ops.management import Management, ManagementSettings
from ops.receiver import Receiver
from ops.totals import Totals
from queues.environment import Reader, Secret
from queues.errors import ConfigurationError
from queues.settings import BrokerSettings
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
        self.calls = 0
        self.now = 100.0

    def queues(self) -> list[dict[str, Any]]:
        self.calls += 1
        if self.error:
            raise self.error
        return list(self.rows.values())

    def depth(self) -> Depth:
        return Depth(self.queues, clock=lambda: self.now)


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
    found = scraped(broker.depth())
    assert {name: value for name, value in found.items() if "queue=" not in name or "math" in name} == {
        "celery_broker_up": 1,
        'celery_queue_up{queue="math"}': 1,
        'celery_queue_messages_ready{queue="math"}': 7,
        'celery_queue_messages_unacknowledged{queue="math"}': 2,
        'celery_queue_consumers{queue="math"}': 1,
        'celery_dead_letter_messages{queue="math"}': 4,
        "celery_undeliverable_messages": 5,
        "celery_delayed_messages": 10,
        'celery_exporter_collector_success{collector="broker"}': 1,
    }
    assert len([name for name in found if name.startswith("celery_queue_messages_ready")]) == len(QUEUES.names)


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


def test_scrapes_within_a_second_share_one_call(broker: FakeBroker) -> None:
    depth = broker.depth()
    first = scraped(depth)
    broker.rows["math"] = row("math", 99)
    broker.now += 0.9
    assert scraped(depth) == first
    assert broker.calls == 1
    broker.now += 0.2
    assert scraped(depth)['celery_queue_messages_ready{queue="math"}'] == 99
    assert broker.calls == 2


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

    delivery_tag = 7

    def __init__(self, body: str) -> None:
        self.body = body
        self.acknowledged: list[int] = []
        self.channel = self

    def basic_ack(self, tag: int) -> None:
        self.acknowledged.append(tag)


def test_a_message_that_is_no_snapshot_is_acknowledged_and_counted() -> None:
    totals = Totals()
    message = FakeMessage("nonsense")
    Receiver(BrokerSettings(), "main", totals)._receive(message)
    assert message.acknowledged == [7]
    assert samples(totals.collect)["celery_exporter_snapshots_malformed_total"] == 1


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
    made = Exporter(ExporterSettings.from_env(PLAIN), host="127.0.0.1", port=0, exporter_id="main")
    yield made
    made._server.server_close()


def ask(exporter: Exporter, path: str, **headers: str) -> tuple[str, dict[str, str], bytes]:
    environ: dict[str, Any] = {"PATH_INFO": path, **headers}
    setup_testing_defaults(environ)
    answer: list[Any] = []
    body = b"".join(exporter._respond(environ, lambda status, found: answer.extend((status, dict(found)))))
    return answer[0], answer[1], body


def test_pages(exporter: Exporter) -> None:
    assert ask(exporter, "/")[0] == "200 OK"
    assert b'href="/metrics"' in ask(exporter, "/")[2]
    assert ask(exporter, "/secret")[0] == "404 Not Found"
    assert ask(exporter, "/-/healthy")[0] == "503 Service Unavailable"
    assert ask(exporter, "/-/ready")[0] == "503 Service Unavailable"
    exporter.receiver.consuming = True
    assert ask(exporter, "/-/ready")[0] == "200 OK"
    assert exporter.url.startswith("http://127.0.0.1:")


def test_metrics_in_both_formats_and_packed(exporter: Exporter) -> None:
    exporter._management.get = lambda *_, **__: list(healthy().values())  # type: ignore[method-assign]
    exporter.totals.apply(
        json.dumps(
            {
                "version": 1,
                "incarnation": "one",
                "worker": "math@host",
                "queue": "math",
                "seq": 1,
                "bounds": QUEUES.queue("math").buckets,
                "gauges": {},
                "series": [["started", "math.add", "", 1], ["wait", "math.add", "", [0.5, *[1] * 17]]],
            }
        )
    )
    _, headers, plain = ask(exporter, "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"_created" not in plain
    for name in (b"process_resident_memory_bytes", b"celery_exporter_consuming 0.0", b"celery_broker_up 1.0"):
        assert name in plain
    _, headers, modern = ask(exporter, "/metrics", HTTP_ACCEPT="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    parse: Callable[[str], Iterator[Metric]] = text_string_to_metric_families
    families = {family.name: family for family in parse(modern.decode())}
    assert families["celery_task_queue_wait_seconds"].type == "histogram"
    assert families["celery_task_started"].samples[0].value == 1
    _, headers, packed = ask(exporter, "/metrics", HTTP_ACCEPT_ENCODING="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert b"celery_task_started_total" in gzip.decompress(packed)


def test_settings(tmp_path: Path) -> None:
    settings = ExporterSettings.from_env(
        PLAIN | {"EXPORTER_ID": "two", "EXPORTER_ADDRESS": "[::1]:9999", "MANAGEMENT_URL": "HTTPS://Broker:15671/"}
    )
    assert (settings.exporter_id, settings.host, settings.port) == ("two", "::1", 9999)
    assert settings.management.url == "HTTPS://Broker:15671"
    defaults = ExporterSettings.from_env(PLAIN)
    assert (defaults.exporter_id, defaults.host, defaults.port) == ("main", "127.0.0.1", 9808)
    assert "secret" not in repr(defaults)
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
    assert len(said.splitlines()) == 1


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
    assert path == "/api/queues/%2F?columns=name,state,messages,messages_ready,messages_unacknowledged,consumers"
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
