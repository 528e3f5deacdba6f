"""What surrounds the work: remote control, logs, beat, Flower, the embedded stack and the exposition."""

from __future__ import annotations

from workers.hooks.hook import Hook, Rows

ROWS: Rows = {
    ("celery.app.base:Celery", "workers/app.py"): (
        Hook("control_cls", "changed: names Control", "control"),
        Hook("events_cls", "changed: names Events", "events"),
        Hook("log_cls", "changed: names Logging", "log"),
    ),
    ("celery.app.base:Celery", "ops/flower.py"): (Hook("control_cls", "changed: names Control", "control"),),
    ("celery.worker.worker:WorkController", "workers/app.py"): (
        Hook("hostname", "changed: a node is named after its queue", made_in="__init__"),
    ),
    ("celery.apps.worker:Worker", "workers/app.py"): (
        Hook("quiet", "changed: no banner among lines of JSON", "on_start", made_in="on_before_init"),
    ),
    ("celery.worker.control:Panel", "workers/remote.py"): (
        Hook(
            "data",
            "replaced: a worker answers questions; else anybody may shut it down",
            "celery.worker.pidbox:Pidbox.__init__",
        ),
    ),
    ("kombu.pidbox:Node", "workers/remote.py"): (
        Hook("handlers", "changed: our orders in place of Celery's", "handle", made_in="__init__"),
        Hook(
            "reply(self, data, exchange, routing_key, ticket, **kwargs)",
            "overridden: answers without waiting",
            "dispatch",
        ),
    ),
    ("kombu.pidbox:Mailbox", "workers/remote.py"): (
        Hook("node_cls", "overridden: the node of ours", "Node"),
        Hook("_get_exchange(self, namespace, type)", "overridden: the broker owns it", "__init__"),
        Hook("_get_reply_exchange(self, namespace)", "overridden: the broker owns it", "__init__"),
    ),
    ("celery.app.control:Control", "workers/remote.py"): (
        Hook("Mailbox", "overridden: the mailbox of ours", "__init__"),
    ),
    ("celery.app.events:Events", "workers/remote.py"): (
        Hook("dispatcher_cls", "overridden: the dispatcher of ours", "Dispatcher"),
    ),
    ("celery.events.dispatcher:EventDispatcher", "workers/remote.py"): (
        Hook("exchange", "changed: the broker owns it", "_publish", made_in="__init__"),
    ),
    ("kombu.entity:Exchange", "workers/remote.py"): (
        Hook("no_declare", "changed: it is not declared", "_can_declare"),
    ),
    ("kombu.pidbox:Mailbox", "workers/selfcheck.py"): (
        Hook("get_queue(self, hostname)", "called: the name of a worker's control queue", "kombu.pidbox:Node.Consumer"),
    ),
    ("kombu.pidbox:Mailbox", "ops/definitions.py"): (
        Hook("exchange_fmt", "written out again", value="%s.pidbox"),
        Hook("reply_exchange_fmt", "written out again", value="reply.%s.pidbox"),
    ),
    ("celery.utils.dispatch.signal:Signal", "workers/startup.py"): (
        Hook(
            "send(self, sender, **named)",
            "replaced on the instance: what a receiver raises at set-up ends the process",
            "celery.concurrency.prefork:process_initializer",
        ),
    ),
    ("celery.app.log:Logging", "workers/logs.py"): (
        Hook(
            "setup_logging_subsystem(self, loglevel=None, logfile=None, format=None, colorize=None, hostname=None, "
            "datefmt=None, **kwargs)",
            "overridden: lines of JSON, of this app alone",
            "setup",
        ),
    ),
    ("celery.app.trace:build_tracer.trace_task", "workers/logs.py"): (
        Hook("return_value", "read: the line of a task that succeeded, which holds its result"),
    ),
    ("celery.app.trace:TraceInfo._log_error", "workers/logs.py"): (
        Hook("description", "read: the line of a task that failed, which holds its arguments"),
    ),
    ("celery.worker.strategy:logger", "workers/logs.py"): (
        Hook("name", "written out again: its line at receipt is left out", value="celery.worker.strategy"),
    ),
    ("celery.concurrency.base:logger", "workers/logs.py"): (
        Hook("name", "written out again: at level debug it writes the bodies of messages", value="celery.pool"),
    ),
    ("celery.beat:Scheduler", "workers/beat.py"): (
        Hook("tick(self, ...)", "overridden: one turn", "celery.beat:Service.start"),
        Hook("setup_schedule(self)", "overridden: nothing is kept on this machine", "__init__"),
        Hook("install_default_entries(self, data)", "called: Celery's own entries"),
        Hook("update_from_dict(self, dict_)", "called: the table's", "install_default_entries"),
        Hook("close(self)", "overridden: gives up the lock", "celery.beat:Service.sync"),
        Hook("info", "overridden: the banner", "celery.apps.beat:Beat.startup_info"),
        Hook("data", "read: the entries", made_in="__init__"),
    ),
    ("celery.beat:Service", "workers/beat.py"): (
        Hook("get_scheduler(self, lazy=False, extension_namespace='celery.beat_schedulers')", "relied on: makes ours"),
        Hook("schedule_filename", "relied on: passed to our scheduler", "get_scheduler", made_in="__init__"),
        Hook("start(self, embedded_process=False)", "relied on: ends with the SystemExit of a turn"),
    ),
    ("celery.apps.beat:Beat", "workers/beat.py"): (
        Hook(
            "install_sync_handler(self, service)",
            "relied on: called before beat starts, where ours replaces it: SIGTERM ends beat after its turn",
            "start_scheduler",
            upstream="celery#1495",
        ),
    ),
    ("celery.schedules:crontab", "workers/beat.py"): (
        Hook("remaining_delta(self, last_run_at, tz=None, ffwd=...)", "called: the next moment", "remaining_estimate"),
    ),
    ("flower.events", "ops/flower.py"): (Hook("EventReceiver", "replaced: declares nothing", "Events.run"),),
    ("flower.inspector:Inspector", "ops/flower.py"): (
        Hook("inspect_methods", "replaced: asks what workers answer", "methods_to_inspect"),
    ),
    ("celery.events.receiver:EventReceiver", "ops/flower.py"): (
        Hook("wakeup_workers(self, channel=None)", "overridden: orders nobody about", "on_consume_ready"),
        Hook("queue", "changed: its exchange is the broker's", "get_consumers", made_in="__init__"),
    ),
    ("kombu.entity:Queue", "ops/flower.py"): (
        Hook("exchange", "changed: it is not declared", "_create_exchange", made_in="__init__"),
    ),
    ("amqp.abstract_channel:AbstractChannel", "ops/browse.py"): (
        Hook("auto_decode", "changed: bodies stay bytes", "dispatch_method", made_in="__init__"),
    ),
    ("celery.backends.database.session", "ops/local.py"): (
        Hook("ResultModelBase", "read: the tables are made once, before all workers try"),
    ),
    ("supervisor.xmlrpc", "ops/processes.py"): (
        Hook("SupervisorTransport(username=None, password=None, serverurl=None)", "called: talks to a socket"),
    ),
    ("prometheus_client.utils", "ops/exposition.py"): (
        Hook(
            "floatToGoString(d)",
            "called: numbers as the client writes them",
            "prometheus_client.exposition:generate_latest.sample_line",
        ),
    ),
    ("prometheus_client.exposition", "ops/exposition.py"): (
        Hook("choose_encoder(accept_header)", "called: the format asked for", "_bake_output"),
        Hook("gzip_accepted(accept_encoding_header)", "called: whether to compress", "_bake_output"),
    ),
    ("prometheus_client.metrics_core:Metric", "ops/exposition.py"): (
        Hook("samples", "overridden: made when they are read", made_in="__init__"),
    ),
    ("celery.app.amqp:Queues", "workers/orders.py"): (
        Hook("deselect(self, exclude)", "called: a new connection leaves a paused worker paused"),
        Hook("select_add(self, queue, **kwargs)", "called: takes it up again"),
    ),
    ("celery.worker.consumer.consumer:Consumer", "workers/orders.py"): (
        Hook("cancel_task_queue(self, queue)", "called: pauses", "celery.worker.control:cancel_consumer"),
        Hook("add_task_queue(self, queue, ...)", "called: goes on", "celery.worker.control:add_consumer"),
        Hook("call_soon(self, p, *args, **kwargs)", "called: in the loop's next turn"),
    ),
    ("celery.worker.control", "workers/orders.py"): (
        Hook("rate_limit(state, task_name, rate_limit, **kwargs)", "called: Celery's own, for a rate that can be kept"),
    ),
    ("billiard.util", "workers/logs.py"): (Hook("get_logger()", "called: its lines are JSON, too"),),
}
