from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from celery.schedules import crontab

from queues import celeryconfig
from queues.environment import Secret
from queues.settings import BrokerSettings, ResultSettings, Settings, TlsFiles
from queues.topology import QUEUES

TLS = TlsFiles(ca=Path("/ca"), cert=Path("/cert"), key=Path("/key"))


def config(**changes: Any) -> dict[str, Any]:
    return celeryconfig.build(Settings(**{"broker": BrokerSettings(password=Secret("p"), files=TLS), **changes}))


#: libpq's options by which a dead server is noticed.
ALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 2, "tcp_user_timeout": 5000}


def test_what_every_deployment_relies_on() -> None:
    built = config()
    expected = {
        "task_acks_late": True,
        "task_acks_on_failure": False,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_publish_retry": False,
        "task_create_missing_queues": False,
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_serializer": "json",
        "enable_utc": True,
        "timezone": "Asia/Seoul",
        "result_expires": 3600,
        "task_ignore_result": False,
        "worker_pool": "prefork",
        "worker_send_task_events": False,
        "event_queue_exclusive": True,
        "control_queue_exclusive": True,
    }
    assert {name: built[name] for name in expected} == expected
    assert built["broker_transport_options"]["confirm_publish"] is True


def test_tls_to_the_broker_verifies_the_chain() -> None:
    options = config()["broker_use_ssl"]
    assert options["cert_reqs"] is ssl.CERT_REQUIRED
    assert options["tls_minimum_version"] is ssl.TLSVersion.TLSv1_2
    assert (options["ca_certs"], options["certfile"], options["keyfile"]) == ("/ca", "/cert", "/key")


def test_no_scheme_lets_kombu_switch_drivers() -> None:
    for settings in (BrokerSettings(), BrokerSettings(tls=False)):
        assert not celeryconfig.broker(settings)["broker_url"].startswith("amqp://")


def test_the_result_store_is_verified_by_name() -> None:
    built = config(results=ResultSettings(url="rediss://valkey:6379/0", files=TLS, password=Secret("p")))
    assert built["redis_backend_use_ssl"]["ssl_check_hostname"] is True
    assert built["redis_backend_use_ssl"]["ssl_cert_reqs"] is ssl.CERT_REQUIRED
    assert built["redis_password"] == "p"
    assert "p@" not in built["result_backend"]


def test_a_password_goes_into_an_sql_url() -> None:
    built = celeryconfig.results(ResultSettings(url="db+postgresql://warren@pg/warren", password=Secret("a/b")))
    assert built["result_backend"] == "db+postgresql://warren:a%2Fb@pg/warren"


def test_postgresql_is_verified_by_name() -> None:
    for url in ("db+postgresql://warren@pg/warren", "db+postgresql+psycopg://warren@127.0.0.1/warren"):
        built = celeryconfig.results(ResultSettings(url=url, files=TLS))
        assert built["database_engine_options"] == {
            "hide_parameters": True,
            "pool_pre_ping": True,
            "pool_recycle": 3600,
            "connect_args": {
                **ALIVE,
                "sslmode": "verify-full",
                "sslrootcert": "/ca",
                "sslcert": "/cert",
                "sslkey": "/key",
            },
        }


def test_postgresql_is_verified_even_without_an_authority_of_ours() -> None:
    built = celeryconfig.results(ResultSettings(url="db+postgresql://warren@pg/warren"))
    assert built["database_engine_options"]["connect_args"] == {**ALIVE, "sslmode": "verify-full"}
    local = celeryconfig.results(ResultSettings(url="db+postgresql://warren@localhost/warren"))
    assert local["database_engine_options"] == {"hide_parameters": True, "pool_pre_ping": True, "pool_recycle": 3600}


def test_sqlite_waits_for_other_writers() -> None:
    built = celeryconfig.results(ResultSettings(url="db+sqlite:////tmp/r.sqlite"))
    assert built["database_engine_options"] == {"hide_parameters": True, "connect_args": {"timeout": 10}}


def test_queues_are_quorum_topic_and_never_declared_by_an_application() -> None:
    for queue in config()["task_queues"]:
        assert queue.queue_arguments["x-queue-type"] == "quorum"
        assert queue.no_declare
        assert queue.exchange.no_declare
        assert queue.exchange.type == "topic"
    email = next(queue for queue in config()["task_queues"] if queue.name == "email")
    assert email.queue_arguments["x-single-active-consumer"] is True


def test_limits_come_from_the_table() -> None:
    options = celeryconfig.task_options(QUEUES.task("math.add")[1])
    assert (options["time_limit"], options["soft_time_limit"], options["max_retries"]) == (15, 10, 3)


def test_the_schedule_holds_both_periodic_tasks() -> None:
    schedule = celeryconfig.schedule(QUEUES)
    assert schedule["monitor.check_status"]["schedule"] == 30.0
    assert schedule["monitor.check_status"]["options"]["expires"] < 30
    assert schedule["monitor.generate_report"]["schedule"] == crontab(minute="0", hour="0")


def test_results_are_stored_for_all_but_the_monitors_tasks() -> None:
    for queue in QUEUES:
        for task in queue.tasks:
            assert celeryconfig.task_options(task)["ignore_result"] is (queue.name == "monitor")
