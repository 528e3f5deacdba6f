"""What the pool of processes needs: its children and pipes, and limits that stand still."""

from __future__ import annotations

from workers.hooks.hook import Hook, Rows

ROWS: Rows = {
    ("celery.concurrency.prefork:TaskPool", "workers/limits.py"): (
        Hook("Pool", "overridden: the pool of ours", "on_start"),
    ),
    ("celery.concurrency.asynpool:AsynPool", "workers/limits.py"): (
        Hook(
            "_on_soft_timeout(self, job, soft, hard, hub)",
            "overridden: limits stand still while the broker takes nothing",
            "_create_timelimit_handlers.on_timeout_set",
        ),
        Hook(
            "_on_hard_timeout(self, job)",
            "overridden: the same",
            "_create_timelimit_handlers.on_timeout_set _on_soft_timeout",
        ),
        Hook(
            "_tref_for_id",
            "changed: the timer of a limit that was put off",
            "_on_soft_timeout",
            made_in="_create_timelimit_handlers",
        ),
    ),
    ("billiard.pool:Pool", "workers/limits.py"): (
        Hook("_cache", "read: the job of a limit", made_in="__init__"),
        Hook("_create_worker_process(self, i)", "relied on: numbers the processes by `index`", "_repopulate_pool"),
    ),
    ("billiard.pool:ApplyResult", "workers/limits.py"): (
        Hook("_worker_pid", "read: which process runs a job", made_in="__init__ _ack"),
        Hook("_time_accepted", "read: since when, by the monotonic clock", made_in="__init__ _ack"),
        Hook("_timeout", "read: the hard limit in force", made_in="__init__"),
        Hook("correlation_id", "read: the task's id, for the log", made_in="__init__"),
    ),
    ("celery._state", "workers/limits.py"): (Hook("get_current_worker_task()", "called: the task that waits"),),
    ("celery.concurrency.asynpool:AsynPool", "workers/pipe.py"): (
        Hook("Worker", "overridden: the child of ours"),
        Hook("ResultHandler", "overridden: the reader of ours"),
        Hook(
            "on_process_alive(self, pid)",
            "overridden: which children were ready for work",
            "create_result_handler",
        ),
        Hook(
            "_create_process_handlers(self, hub)",
            "overridden: a child that cannot be set up ends the worker",
            "register_with_event_loop",
        ),
        Hook(
            "on_process_down",
            "wrapped: sees its exit code",
            "billiard.pool:Pool._join_exited_workers",
            made_in="_create_process_handlers",
        ),
        Hook(
            "create_process_queues(self)",
            "overridden: the parent reads plain data only",
            "on_partial_read",
        ),
    ),
    ("celery.concurrency.asynpool:ResultHandler", "workers/pipe.py"): (
        Hook(
            "_recv_message(self, add_reader, fd, callback, load, ...)",
            "overridden: the same, and a child that writes anything else is ended",
            "_make_process_result",
        ),
        Hook("_hub", "read: stops listening to that child", made_in="register_with_event_loop"),
        Hook("fileno_to_outq", "read: which child it is", "on_stop_not_started", made_in="__init__"),
    ),
    ("billiard.pool:Worker", "workers/pipe.py"): (
        Hook("after_fork(self)", "overridden: a child that cannot be set up has an exit code of its own", "__call__"),
        Hook("on_loop_start(self, pid)", "overridden: the child is as every task should find it", "__call__"),
        Hook("outq", "read: where a child tells", "workloop", made_in="__init__"),
    ),
    ("celery.concurrency.asynpool:Worker", "workers/pipe.py"): (
        Hook("on_loop_start(self, pid)", "overridden: tells the parent that the child is ready"),
    ),
    ("billiard.queues:_SimpleQueue", "workers/pipe.py"): (
        Hook(
            "put(self, obj)",
            "replaced on the instance: an error is told as plain data",
            "billiard.pool:Worker.workloop",
        ),
        Hook(
            "_reader",
            "read: the parent's end",
            "celery.concurrency.asynpool:ResultHandler._flush_outqueue",
            made_in="__init__",
        ),
    ),
    ("billiard.connection:_ConnectionBase", "workers/pipe.py"): (
        Hook(
            "recv(self)",
            "replaced on the instance: where a child has ended, plain data only",
            "celery.concurrency.asynpool:ResultHandler._flush_outqueue "
            "celery.concurrency.asynpool:AsynPool.process_flush_queues",
        ),
        Hook("recv_bytes(self, maxlength=None)", "called: reads them"),
    ),
    ("billiard.pool", "workers/pipe.py"): (Hook("READY", "read: the message of a task that has ended", value=1),),
}
