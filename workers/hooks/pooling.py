"""What the pool of processes needs: its children and pipes, and limits that stand still."""

from __future__ import annotations

from workers.hooks.hook import Hook, Rows

ROWS: Rows = {
    ("celery.concurrency.prefork:TaskPool", "workers/limits.py"): (
        Hook("on_start(self)", "overridden: bounds every task", "celery.concurrency.base:BasePool.start"),
        Hook("on_stop(self)", "overridden: ends what tasks have started", "celery.concurrency.base:BasePool.stop"),
        Hook("on_terminate(self)", "overridden: the same", "celery.concurrency.base:BasePool.terminate"),
        Hook("_pool", "read: billiard's pool", "num_processes", made_in="on_start"),
        Hook("Pool", "overridden: the pool of ours", "on_start"),
    ),
    ("celery.concurrency.asynpool:AsynPool", "workers/limits.py"): (
        Hook(
            "WorkerProcess(self, worker)", "overridden: marks the process", "billiard.pool:Pool._create_worker_process"
        ),
        Hook(
            "_create_process_handlers(self, hub)",
            "overridden: what a task has started ends with its process",
            "register_with_event_loop",
        ),
        Hook(
            "on_process_down",
            "wrapped: the same",
            "billiard.pool:Pool._join_exited_workers",
            made_in="_create_process_handlers",
        ),
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
    ("celery.concurrency.asynpool:Worker", "workers/limits.py"): (
        Hook("on_loop_start(self, pid)", "overridden: a soft limit raises within a task, and not between two"),
    ),
    ("billiard.pool:Worker", "workers/limits.py"): (
        Hook("on_loop_start(self, pid)", "overridden: the same", "__call__"),
    ),
    ("billiard.pool:TimeoutHandler", "workers/limits.py"): (
        Hook("handle_timeouts(self)", "overridden: limits stand still while the worker stops, too", "handle_event"),
        Hook("on_soft_timeout(self, job)", "called: asks a task to end", "handle_timeouts"),
        Hook("on_hard_timeout(self, job)", "called: ends its process", "handle_timeouts"),
        Hook("cache", "read: the jobs under way", "handle_timeouts", made_in="__init__"),
    ),
    ("billiard.pool:PoolThread", "workers/limits.py"): (
        Hook("_state", "read: whether the pool still runs", made_in="__init__"),
    ),
    ("billiard.process:BaseProcess", "workers/limits.py"): (
        Hook("mark", "added: of what the process will start"),
        Hook("programs", "added: what it has started"),
    ),
    ("celery.app.task:Task", "workers/limits.py"): (
        Hook("run(self, *args, **kwargs)", "replaced on the instance: bounded", "celery.app.trace:build_tracer"),
        Hook("retry(self, args, kwargs, exc, throw, ...)", "replaced on the instance: a limit does not cut it short"),
        Hook("replace(self, sig)", "replaced on the instance: the same"),
        Hook(
            "__trace__",
            "wrapped: what a task that exceeded its limit has started ends",
            "celery.app.trace:fast_trace_task",
            made_in="celery.concurrency.prefork:process_initializer",
        ),
    ),
    ("billiard.pool:Pool", "workers/limits.py"): (
        Hook("Worker", "overridden: the process of ours", "_create_worker_process"),
        Hook("TimeoutHandler", "overridden: the limits of ours", "__init__"),
        Hook("apply_async(self, ...)", "overridden: counts", "celery.concurrency.prefork:TaskPool.on_start"),
        Hook(
            "terminate_job(self, pid, sig=None)",
            "overridden: looks at what the process has started",
            "celery.concurrency.prefork:TaskPool.on_start",
        ),
        Hook("_process_by_pid(self, pid)", "called: which process it is", "terminate_job"),
        Hook("_cache", "read: the job of a limit", made_in="__init__"),
    ),
    ("billiard.pool:ApplyResult", "workers/limits.py"): (
        Hook("_soft_timeout", "read: the soft limit in force", made_in="__init__"),
        Hook("put_off", "added: by how much the limits are put off"),
        Hook("was_asked", "added: whether the task was asked to give its message back"),
        Hook("was_told", "added: whether the task was told of its soft limit"),
        Hook("_worker_pid", "read: which process runs a job", made_in="__init__ _ack"),
        Hook("_time_accepted", "read: since when, by the monotonic clock", made_in="__init__ _ack"),
        Hook("_timeout", "read: the hard limit in force", made_in="__init__"),
        Hook("correlation_id", "read: the task's id, for the log", made_in="__init__"),
    ),
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
        Hook("_do_exit(self, pid, exitcode, exc=None)", "overridden: ends with a number", "__call__"),
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
    ("billiard.pool:Pool", "workers/pipe.py"): (
        Hook(
            "did_start_ok(self)",
            "overridden: ends where the first children could not be set up",
            "celery.concurrency.prefork:TaskPool.did_start_ok",
        ),
        Hook("_pool", "read: its processes", "_process_by_pid", made_in="__init__"),
    ),
    ("celery.concurrency.prefork:TaskPool", "workers/places.py"): (
        Hook("_pool", "read: billiard's pool", "num_processes", made_in="on_start"),
    ),
    ("billiard.pool:Pool", "workers/places.py"): (
        Hook("_cache", "read: the jobs under way", "apply_async", made_in="__init__"),
        Hook("_processes", "read: how many it should have", "_repopulate_pool", made_in="__init__"),
    ),
    ("billiard.pool:ApplyResult", "workers/places.py"): (
        Hook("_job", "read: its number", made_in="__init__"),
        Hook("_accepted", "read: whether a process has begun it", made_in="__init__ _ack"),
        Hook("_worker_pid", "read: which", made_in="__init__ _ack"),
        Hook(
            "_write_to",
            "read: to which it was given",
            made_in="celery.concurrency.asynpool:AsynPool._create_write_handlers._write_job",
        ),
        Hook("discard(self)", "called: the end of the pool does not wait for it"),
    ),
    ("celery.worker.state", "workers/places.py"): (
        Hook("should_stop", "changed: ends the worker with that exit code", "maybe_shutdown"),
        Hook("should_terminate", "read: whether it ends already", "maybe_shutdown"),
        Hook("requests", "read: what the worker holds"),
        Hook("active_requests", "read: what runs"),
        Hook("reserved_requests", "read: what waits"),
    ),
    ("celery.worker.consumer.consumer:Consumer", "workers/places.py"): (
        Hook("task_buckets", "read: what waits for its rate limit", made_in="__init__"),
    ),
    ("billiard.pool:Pool", "workers/waits.py"): (
        Hook("index", "read: which place a process has", made_in="_create_worker_process"),
    ),
}
