"""What a worker's loop needs: its consumer, connections, and how it stops."""

from __future__ import annotations

from workers.hooks.hook import Hook, Rows

ROWS: Rows = {
    ("celery.worker.consumer.consumer:Consumer.Blueprint", "workers/consumer.py"): (
        Hook(
            "default_steps",
            "overridden: a step that Celery adds is one to decide on",
            "celery.bootsteps:Blueprint.__init__",
            value=(
                "celery.worker.consumer.connection:Connection",
                "celery.worker.consumer.mingle:Mingle",
                "celery.worker.consumer.events:Events",
                "celery.worker.consumer.gossip:Gossip",
                "celery.worker.consumer.heart:Heart",
                "celery.worker.consumer.control:Control",
                "celery.worker.consumer.tasks:Tasks",
                "celery.worker.consumer.delayed_delivery:DelayedDelivery",
                "celery.worker.consumer.consumer:Evloop",
                "celery.worker.consumer.agent:Agent",
            ),
        ),
    ),
    ("celery.worker.consumer.consumer:Consumer", "workers/consumer.py"): (
        Hook("Blueprint", "overridden: the steps of ours", "__init__"),
        Hook("__init__(self, worker_options, ...)", "overridden: no gossip, no mingle"),
        Hook("connection_errors", "changed: a name that is still taken is one", "start", made_in="__init__"),
        Hook("on_ready(self)", "overridden: the worker has its name", "celery.worker.loops:asynloop"),
        Hook(
            "on_close(self)",
            "overridden: what a process has taken is finished by a worker that ends",
            "__init__ start",
        ),
        Hook("on_connection_error_after_connected(self, exc)", "overridden: waits for its name", "start"),
        Hook(
            "create_task_handler(self, promise=...)",
            "overridden: a look at each message before Celery takes it",
            "celery.worker.loops:asynloop",
            upstream="celery#2873",
        ),
        Hook(
            "on_decode_error(self, message, exc)",
            "overridden: Celery would delete the message",
            "create_task_handler.on_task_received celery.worker.consumer.tasks:Tasks.start",
        ),
        Hook("on_invalid_task(self, body, message, exc)", "overridden: the same", "create_task_handler"),
        Hook("on_unknown_task(self, body, message, exc)", "overridden: the same", "create_task_handler"),
        Hook(
            "update_strategies(self)",
            "overridden: the tasks of a worker in a thread tell plain data, too",
            "celery.worker.consumer.tasks:Tasks.start",
        ),
        Hook(
            "ensure_connected(self, conn)",
            "overridden: one line for each failure, and what cannot heal ends the worker",
            "connection_for_read connection_for_write",
        ),
        Hook(
            "connection_for_write(self, url=None, heartbeat=None)",
            "overridden: worker events are unconfirmed, or an alarm would stop consuming",
            "celery.worker.consumer.events:Events.start",
        ),
        Hook(
            "event_dispatcher", "read: the unconfirmed connection", made_in="celery.worker.consumer.events:Events.start"
        ),
    ),
    ("celery.app.task:Task", "workers/consumer.py"): (
        Hook(
            "__trace__",
            "wrapped: the tasks of a worker in a thread tell plain data, too",
            "celery.app.trace:trace_task",
            made_in="celery.worker.consumer.consumer:Consumer.update_strategies",
        ),
    ),
    ("celery.worker.worker:WorkController", "workers/consumer.py"): (
        Hook("exitcode", "changed: a worker that gives up ends with 2", "stop celery.bin.worker:worker"),
    ),
    ("kombu.compression", "workers/consumer.py"): (
        Hook("_decoders", "emptied: 242 bytes may hold 300 MB", "get_decoder"),
    ),
    ("kombu.message:Message", "workers/consumer.py"): (
        Hook("ack_log_error(self, logger, errors, multiple=False)", "called: a lost connection is no error"),
        Hook("reject_log_error(self, logger, errors, requeue=False)", "called: the same"),
    ),
    ("celery.worker.state", "workers/consumer.py"): (
        Hook("should_stop", "read: whether the worker ends", "maybe_shutdown"),
        Hook("maybe_shutdown()", "called: a worker without a broker ends when it is told to"),
    ),
    ("celery.concurrency.base:BasePool", "workers/consumer.py"): (
        Hook(
            "_pool",
            "read: billiard's pool",
            "celery.concurrency.prefork:TaskPool.num_processes",
            made_in="celery.concurrency.prefork:TaskPool.on_start",
        ),
    ),
    ("billiard.pool:Pool", "workers/consumer.py"): (
        Hook("_cache", "read: the jobs under way", "apply_async", made_in="__init__"),
    ),
    ("billiard.pool:ApplyResult", "workers/consumer.py"): (
        Hook(
            "_accepted",
            "changed: a job that a process has read is under way",
            "celery.concurrency.asynpool:AsynPool.flush",
            made_in="__init__",
        ),
        Hook(
            "_write_to",
            "read: whether a process has it",
            "celery.concurrency.asynpool:AsynPool.flush",
            made_in="celery.concurrency.asynpool:AsynPool._create_write_handlers._write_job",
        ),
    ),
    ("billiard.pool", "workers/wakeup.py"): (
        Hook("EX_OK", "read: the exit code of a child that was told to end", value=0),
        Hook("time", "replaced in a child that ends, which would sleep a second more", "Worker._do_exit"),
    ),
    ("billiard.common", "workers/pipe.py"): (
        Hook("terminate_handler_fired()", "called: what a signal ends is no task's own end"),
    ),
    ("billiard.common", "workers/wakeup.py"): (
        Hook("terminate_handler_fired()", "called: one that a signal ends keeps the second"),
    ),
    ("amqp.abstract_channel:AbstractChannel", "workers/heartbeat.py"): (
        Hook(
            "_pending", "changed: the answer to a question is taken by the loop", "dispatch_method", made_in="__init__"
        ),
        Hook(
            "send_method(self, sig, format, args, content, ...)",
            "called: asks without waiting",
        ),
    ),
    ("amqp.abstract_channel:AbstractChannel", "workers/reporter.py"): (
        Hook(
            "send_method(self, sig, format, args, content, ...)",
            "called: publishes without reading",
        ),
    ),
    ("amqp.channel:Channel", "workers/reporter.py"): (
        Hook(
            "_on_close(self, reply_code, reply_text, class_id, method_id)",
            "overridden: a refused measurement does not restart the consumer",
            "_setup_listeners",
        ),
        Hook("collect(self)", "called: the closed channel is dropped", "_on_close_ok"),
    ),
    ("celery.worker.state", "workers/reporter.py"): (
        Hook("active_requests", "read: the gauges"),
        Hook("reserved_requests", "read: the gauges"),
    ),
    ("celery.worker.request:Request", "workers/reporter.py"): (
        Hook("time_start", "read: the age of the oldest task", "info"),
    ),
    ("kombu.transport.native_delayed_delivery", "workers/deadletter.py"): (
        Hook("calculate_routing_key(countdown, routing_key)", "called: a message that waits in the broker"),
        Hook("level_name(level, prefix=None)", "called: the exchange of delays"),
        Hook("MAX_NUMBER_OF_BITS_TO_USE", "read: the highest level", value=28),
    ),
}
