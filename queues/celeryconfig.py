"""Celery's configuration, built from settings and the table by pure functions."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from celery.schedules import crontab
from kombu import Exchange, Queue

from queues import transport
from queues.environment import is_loopback
from queues.topology import HOUSEKEEPING_QUEUE, QUEUES, QueueSpec, TaskSpec, Topology

if TYPE_CHECKING:
    from queues.settings import BrokerSettings, ResultSettings, Settings, TlsFiles

#: Seconds to connect to one host, TLS handshake included.
CONNECT_TIMEOUT = 10
#: Celery's backend that stores nothing.
NO_RESULTS = "disabled://"
#: Seconds that SQLite waits for another writer.
SQLITE_BUSY_TIMEOUT = 10


def build(settings: Settings, topology: Topology = QUEUES) -> dict[str, Any]:
    """Everything that Celery is configured with, for producers and workers alike."""
    return {
        **broker(settings.broker),
        **results(settings.results),
        **routing(topology),
        "timezone": settings.timezone,
        "enable_utc": True,
        # JSON only: a pickle runs code.
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_protocol": 2,
        # A task is acknowledged when it succeeded; a failed one is rejected, and the broker dead-letters it.
        "task_acks_late": True,
        "task_acks_on_failure": False,
        "task_reject_on_worker_lost": True,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "prefork",
        # A slow child start on a busy machine must not be taken for a dead child.
        "worker_proc_alive_timeout": 60,
        "worker_detect_quorum_queues": True,
        "worker_enable_remote_control": True,
        "worker_send_task_events": False,
        "task_send_sent_event": False,
        "task_track_started": True,
        "task_store_errors_even_if_ignored": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "event_queue_exclusive": True,
        "control_queue_exclusive": True,
        "beat_schedule": schedule(topology),
        "beat_max_loop_interval": 5,
    }


def broker(settings: BrokerSettings) -> dict[str, Any]:
    """Connection to RabbitMQ: verified, confirmed, every wait bounded."""
    config: dict[str, Any] = {
        "broker_url": transport.rewrite(settings.url),
        "broker_login_method": settings.login,
        "broker_heartbeat": settings.heartbeat,
        "broker_connection_timeout": CONNECT_TIMEOUT,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {"confirm_publish": True},
        # One publish, one deadline: resending after a write is the caller's decision (see queues.publish).
        "task_publish_retry": False,
    }
    if settings.tls:
        config["broker_use_ssl"] = {
            "cert_reqs": ssl.CERT_REQUIRED,
            "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
            "server_hostname": settings.server_name,
            **present(ca_certs=settings.files.ca, certfile=settings.files.cert, keyfile=settings.files.key),
        }
    return config


def present(**paths: object) -> dict[str, str]:
    """The paths that are not None, as strings."""
    return {name: str(path) for name, path in paths.items() if path is not None}


def results(settings: ResultSettings) -> dict[str, Any]:
    """Where results are stored."""
    config: dict[str, Any] = {
        "result_backend": with_password(settings) or NO_RESULTS,
        "result_expires": settings.expires,
        "result_extended": False,
        # Status by id needs results; a store that is away must not hold a worker for ever.
        "task_ignore_result": False,
        "result_backend_always_retry": True,
        "result_backend_max_retries": 5,
    }
    if settings.kind == "sql":
        # Made with the first result instead: a store that is away would keep an app from having a backend at all.
        config["database_create_tables_at_setup"] = False
        config["database_engine_options"] = sql_options(settings)
    if settings.kind == "redis":
        config["redis_socket_timeout"] = 10
        config["redis_socket_connect_timeout"] = 5
        config["redis_password"] = settings.password.reveal() if settings.password else None
    if settings.url.startswith("rediss://"):
        config["redis_backend_use_ssl"] = redis_tls(settings.files)
    return config


def sql_options(settings: ResultSettings) -> dict[str, Any]:
    """Options of SQLAlchemy, whose errors would quote results and ledger entries, addresses of mails among them."""
    options: dict[str, Any] = {"hide_parameters": True}
    if settings.url.startswith("db+sqlite"):
        return {**options, "connect_args": {"timeout": SQLITE_BUSY_TIMEOUT}}
    # Setting options drops Celery's own, which replace connections that the server has closed.
    options |= {"pool_pre_ping": True, "pool_recycle": 3600}
    if settings.files.ca or not is_loopback(urlsplit(settings.url).hostname or ""):
        options["connect_args"] = postgresql_tls(settings.files)
    return options


def postgresql_tls(files: TlsFiles) -> dict[str, str | int]:
    """Options of libpq: by default it neither asks for TLS nor checks whom it talks to, nor notices a dead peer."""
    alive = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 2, "tcp_user_timeout": 5000}
    return {**alive, "sslmode": "verify-full", **present(sslrootcert=files.ca, sslcert=files.cert, sslkey=files.key)}


def redis_tls(files: TlsFiles) -> dict[str, Any]:
    """redis-py's TLS options; it checks the host name only where asked to."""
    return {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        **present(ssl_ca_certs=files.ca, ssl_certfile=files.cert, ssl_keyfile=files.key),
    }


def with_password(settings: ResultSettings) -> str:
    """The SQL URL with its password filled in; redis takes the password apart from the URL."""
    if settings.kind != "sql" or settings.password is None:
        return settings.url
    parts = urlsplit(settings.url)
    user, _, host = parts.netloc.rpartition("@")
    password = quote(settings.password.reveal(), safe="")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{password}@{host}").geturl()


def queue(spec: QueueSpec) -> Queue:
    """A queue as kombu sees it; the broker owns it, so nothing is declared."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    if spec.single_active_consumer:
        arguments["x-single-active-consumer"] = True
    return Queue(
        spec.name,
        exchange=Exchange(spec.exchange, type="topic", no_declare=True),
        routing_key=spec.routing_key,
        queue_arguments=arguments,
        no_declare=True,
    )


def routing(topology: Topology) -> dict[str, Any]:
    """Queues and routes; a name that the table does not hold raises instead of making a queue."""
    return {
        "task_queues": [queue(spec) for spec in topology],
        "task_routes": [{name: {"queue": topology.task(name)[0].name} for name in topology.task_names}, celery_route],
        "task_default_queue": HOUSEKEEPING_QUEUE,
        "task_default_exchange": topology.queue(HOUSEKEEPING_QUEUE).exchange,
        "task_default_exchange_type": "topic",
        "task_default_routing_key": topology.queue(HOUSEKEEPING_QUEUE).routing_key,
        "task_create_missing_queues": False,
    }


def celery_route(name: str, *_args: object, **_options: object) -> dict[str, str] | None:
    """Celery's own tasks (chord_unlock, backend_cleanup, accumulate, ...) run in the housekeeping queue."""
    return {"queue": HOUSEKEEPING_QUEUE} if name.startswith("celery.") else None


def task_options(task: TaskSpec) -> dict[str, Any]:
    """A task's attributes in Celery's words."""
    return {
        "soft_time_limit": task.soft_time_limit,
        "time_limit": task.time_limit,
        "max_retries": task.max_retries,
        "default_retry_delay": task.retry_backoff,
        "rate_limit": task.rate_limit,
        "ignore_result": task.ignore_result,
    }


def schedule(topology: Topology) -> dict[str, Any]:
    """Beat's schedule; `expires` keeps a backlog from running stale ticks."""
    return {
        task.name: {
            "task": task.name,
            "schedule": crontab.from_string(task.every) if isinstance(task.every, str) else float(task.every),
            "options": {"expires": task.expires, "ignore_result": task.ignore_result},
        }
        for spec in topology
        for task in spec.tasks
        if task.every is not None
    }
