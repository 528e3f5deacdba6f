"""What a publish needs: app, producer and transport; used by `queues/`, and so by every process."""

from __future__ import annotations

from workers.hooks.hook import Hook, Rows

ROWS: Rows = {
    ("celery.app.base:Celery", "queues/app.py"): (
        Hook(
            "_acquire_producer(self, timeout=None)",
            "overridden: a busy pool ends with our error within the publish deadline",
            "producer_or_acquire",
            upstream="celery#10174",
        ),
        Hook("pool", "overridden: connections of this app alone, where kombu shares them", "_acquire_connection"),
        Hook("_pool", "overridden: where they are kept", "_after_fork"),
        Hook("_ensure_after_fork(self)", "called: a forked child must not use its parent's connections"),
        Hook("close(self)", "overridden: closes the connections", "__exit__"),
        Hook("amqp_cls", "overridden: names WarrenAMQP", "amqp"),
        Hook("control_cls", "overridden: names Control", "control"),
        Hook(
            "send_task(self, name, args, kwargs, countdown, eta, task_id, expires, route_name, ...)",
            "overridden: the table and the deadline apply to every task that is sent",
            "celery.app.task:Task.apply_async celery.canvas:Signature._apply_async",
        ),
        Hook("_load_config(self)", "overridden: makes settings of that kind", "conf _finalize_pending_conf"),
        Hook("current_worker_task", "read: a retry or a chain's next step waits for the broker, a producer does not"),
    ),
    ("celery.app.utils:Settings", "queues/app.py"): (
        Hook("broker_url", "overridden: the environment of another application does not beat the settings"),
        Hook("broker_read_url", "overridden: the same", "celery.app.base:Celery.connection_for_read"),
        Hook("broker_write_url", "overridden: the same", "celery.app.base:Celery.connection_for_write"),
        Hook("result_backend", "overridden: the same", "celery.app.base:Celery._get_backend"),
    ),
    ("celery.app.amqp:AMQP", "queues/app.py"): (
        Hook("Producer", "overridden: the confirmed producer"),
        Hook(
            "send_task_message",
            "overridden: a canvas is looked at as a whole before any of it is sent",
            "celery.app.base:Celery.send_task",
        ),
        Hook("_create_task_sender(self)", "called: makes what sends one message", "send_task_message"),
        Hook(
            "_retry_publish(self, publish, *args, **kwargs)",
            "overridden: what comes after a task is sent until the broker has it",
            "celery.app.trace:build_tracer._dispatch_callbacks_and_chain "
            "celery.backends.base:BaseKeyValueStoreBackend.on_chord_part_return",
        ),
        Hook(
            "producer_pool",
            "overridden: a pool of confirmed producers; kombu's own would publish unconfirmed",
            "celery.app.base:Celery._acquire_producer celery.app.base:Celery.producer_pool",
        ),
        Hook("_producer_pool", "overridden: where it is kept", "celery.app.base:Celery._after_fork"),
    ),
    ("celery._state", "queues/publish.py"): (
        Hook("get_current_worker_task()", "called: what a worker passes on may hold numbers that JSON does not have"),
    ),
    ("celery.app.task", "queues/publish.py"): (
        Hook("X_DEATH_HEADERS", "read: a message that names past deaths would stay in the delay queues for ever"),
    ),
    ("kombu.messaging:Producer", "queues/publish.py"): (
        Hook(
            "publish(self, body, headers, mandatory, retry, declare, expiration, timeout, confirm_timeout, ...)",
            "overridden: confirmed, within one deadline, never sent twice",
            "celery.app.amqp:AMQP._create_task_sender.send_task_message",
        ),
        Hook("__connection__", "read: the connection of a producer that has none open yet", made_in="revive"),
        Hook("channel", "read: the channel that is published on"),
        Hook("revive(self, channel)", "called: takes the new connection after a lost one"),
    ),
    ("amqp.channel:Channel", "queues/publish.py"): (
        Hook("events", "changed: a message that no queue takes is refused", "_on_basic_return", made_in="__init__"),
        Hook("_on_basic_return(self, reply_code, reply_text, exchange, routing_key, message)", "relied on: tells it"),
    ),
    ("amqp.transport:_AbstractTransport", "queues/publish.py"): (
        Hook("sock", "read: the wait for an answer ends with the deadline", made_in="__init__ _connect"),
    ),
    ("amqp.transport:_AbstractTransport", "queues/transport.py"): (
        Hook(
            "_connect(self, host, port, timeout)",
            "overridden: the addresses of a name, and its resolver, share one deadline",
            "connect",
        ),
        Hook(
            "write(self, s)",
            "overridden: a peer that takes a message slowly does not take longer than the deadline",
            "amqp.method_framing:frame_writer",
        ),
        Hook("sock", "read and made: what the timeouts are set on", "_init_socket", made_in="__init__ _connect"),
    ),
    ("amqp.connection:Connection", "queues/transport.py"): (
        Hook(
            "connect(self, callback=None)",
            "overridden: ends with the deadline",
            "kombu.transport.pyamqp:Transport.establish_connection",
        ),
        Hook("connect_timeout", "changed: connecting ends with the deadline", "connect", made_in="__init__"),
        Hook(
            "Transport(self, host, connect_timeout, ssl=False, read_timeout=None, write_timeout=None, "
            "socket_settings=None, **kwargs)",
            "overridden: sockets whose waits end with the deadline",
            "connect",
        ),
        Hook("transport", "read: its socket", "blocking_read"),
        Hook("_transport", "read: the same, also where there is none", "transport", made_in="__init__"),
        Hook(
            "on_inbound_frame",
            "replaced on the instance: properties that cannot be decoded do not end the connection",
            "blocking_read",
            upstream="py-amqp#277",
        ),
        Hook(
            "blocking_read(self, timeout=None)",
            "overridden: every wait for the broker ends with the deadline, or with its alarm",
            "drain_events",
        ),
        Hook("close(self, reply_code, reply_text, ...)", "overridden: a peer that is stalled is not waited for"),
        Hook("collect(self)", "overridden: drops the connection at once", "kombu.transport.pyamqp:Transport._collect"),
        Hook("_on_blocked(self)", "overridden: the broker's alarm is seen", "_setup_listeners", upstream="celery#2689"),
        Hook("_on_unblocked(self)", "overridden: and its end", "_setup_listeners", upstream="celery#10386"),
    ),
    ("kombu.transport", "queues/transport.py"): (
        Hook("TRANSPORT_ALIASES", "changed: URL schemes of our transports", "resolve_transport"),
    ),
    ("kombu.transport.pyamqp:Transport", "queues/transport.py"): (
        Hook("Connection", "overridden: our connection", "establish_connection"),
        Hook(
            "establish_connection(self)",
            "overridden: each failover host has its share of the deadline, and its own name checked",
            "kombu.connection:Connection._establish_connection",
            upstream="kombu#1366",
        ),
        Hook("client", "read: the kombu connection", "establish_connection", made_in="__init__"),
        Hook("driver_name", "read: a connection by another driver is refused", value="py-amqp"),
    ),
    ("kombu.connection:Connection", "queues/transport.py"): (
        Hook(
            "connect_timeout",
            "changed while connecting",
            "kombu.transport.pyamqp:Transport.establish_connection",
            made_in="_init_params",
        ),
        Hook(
            "ssl",
            "changed while connecting",
            "kombu.transport.pyamqp:Transport.establish_connection",
            made_in="_init_params",
        ),
        Hook("alt", "read: how many hosts share the deadline", made_in="__init__"),
    ),
    ("kombu.transport.native_delayed_delivery", "ops/definitions.py"): (
        Hook("MAX_LEVEL", "written out again: the broker's delay queues", value=27),
        Hook(
            "CELERY_DELAYED_DELIVERY_EXCHANGE", "written out again: where a delay ends", value="celery_delayed_delivery"
        ),
    ),
    ("celery.canvas", "queues/canvas.py"): (
        Hook("_chain", "changed: its `apply_async` sends as a whole", "_chord.run"),
        Hook("_chord", "changed: the same", "_chain.apply"),
    ),
    ("celery.canvas:_chain", "queues/canvas.py"): (
        Hook("apply_async(self, args=None, kwargs=None, **options)", "wrapped: sends as a whole"),
    ),
    ("celery.canvas:_chord", "queues/canvas.py"): (
        Hook("apply_async(self, args, kwargs, task_id, ...)", "wrapped: the same"),
    ),
    ("celery.canvas:group", "queues/canvas.py"): (
        Hook("apply_async(self, args, kwargs, add_to_parent, ...)", "wrapped: the same"),
    ),
    ("celery._state", "queues/canvas.py"): (
        Hook("get_current_worker_task()", "called: what a worker passes on is not looked at again"),
    ),
    ("celery.app.base:Celery", "queues/canvas.py"): (
        Hook("_get_backend(self)", "called: a result store of its own, which is asked once", "backend"),
    ),
    ("celery.backends.base:Backend", "queues/canvas.py"): (
        Hook("always_retry", "changed: asked once", "_ensure_retryable", made_in="__init__"),
    ),
    ("celery.backends.redis:RedisBackend", "queues/canvas.py"): (
        Hook("retry_policy", "changed: asked once", "ensure"),
        Hook("connparams", "changed: brief waits", "client", made_in="__init__"),
    ),
    ("celery.app.control:Control", "queues/control.py"): (
        Hook(
            "broadcast(self, command, arguments=None, destination=None, connection=None, reply=False, timeout=1.0, "
            "limit=None, callback=None, channel=None, pattern=None, matcher=None, **extra_kwargs)",
            "overridden: what the broker refuses is a sentence",
            "celery.app.control:Inspect._request ping shutdown",
        ),
    ),
}
