"""What a task's run needs: request, tracing, errors and the result store."""

from __future__ import annotations

from workers.hooks.hook import Hook, Rows

#: The class that Celery derives from a task's request.
GENERATED = "celery.worker.request:create_request_cls.Request"

ROWS: Rows = {
    ("celery.worker.request:Request", "workers/guard.py"): (
        Hook("time_limits", "changed: a message's limits stay below the table's", made_in="__init__"),
        Hook("_argsrepr", "changed: no argument in a log", "__repr__ info", made_in="__init__"),
        Hook("_kwargsrepr", "changed: no argument in a log", "__repr__ info", made_in="__init__"),
        Hook("_request_dict", "read and changed: the message's headers", "execute_using_pool", made_in="__init__"),
        Hook("_task", "read: the table's limits", "task", made_in="__init__"),
        Hook("_type", "read: the task's name", "type", made_in="__init__"),
        Hook("_message", "read: the delivery", "message", made_in="__init__"),
        Hook(
            "_context",
            "changed: whoever waits is told once of a hard limit",
            "on_failure on_timeout",
            upstream="celery#10226",
        ),
        Hook(
            "_already_cancelled",
            "read: whether the broker has the message back",
            "on_failure",
            made_in="_announce_cancelled",
        ),
        Hook(
            "_already_revoked", "read: whether we ended the child ourselves", "on_failure", made_in="_announce_revoked"
        ),
        Hook("_success_was_stored(self)", "called: whether a process died after its task was done", "on_failure"),
        Hook(
            "_announce_revoked(self, reason, terminated, signum, expired)",
            "overridden: an expired task is a dead letter",
            "revoked terminate",
        ),
        Hook("maybe_expire(self)", "overridden: an expired id is not remembered as revoked", "revoked"),
        Hook(
            "on_accepted(self, pid, time_accepted)",
            "overridden: a task that begins is counted",
            f"{GENERATED}.execute_using_pool",
        ),
        Hook(
            "on_timeout(self, soft, timeout)",
            "overridden: a task killed at its hard limit is a dead letter",
            f"{GENERATED}.execute_using_pool",
            upstream="celery#9596",
        ),
        Hook(
            "on_failure(self, exc_info, send_failed_event=True, return_ok=False)",
            "overridden: a MemoryError does not end the worker, a dead process is counted",
            f"{GENERATED}.execute_using_pool {GENERATED}.on_success",
            upstream="celery#10462 celery#9082",
        ),
        Hook("on_retry(self, exc_info)", "overridden: a retry is counted", "on_failure"),
        Hook("acknowledge(self)", "overridden: or dead-letters", f"{GENERATED}.on_success on_failure on_timeout"),
        Hook("reject(self, requeue=False)", "overridden: with the reason", "on_failure on_timeout"),
        Hook("store_errors", "read: whether a failure is recorded"),
        Hook("send_event(self, type, **fields)", "called: events of an end that Celery does not tell"),
    ),
    ("celery.worker.request", "workers/guard.py"): (
        Hook(
            "create_request_cls(base, task, pool, hostname, eventer, ...)",
            "relied on: derives its class from ours, which `__init_subclass__` sees",
            "celery.worker.strategy:default",
        ),
        Hook("task_ready(request, successful, ...)", "called: the worker forgets the request"),
    ),
    (f"{GENERATED}", "workers/guard.py"): (
        Hook(
            "on_success(self, failed__retval__runtime, **kwargs)",
            "wrapped: the one place that knows runtime and success",
            "execute_using_pool",
        ),
        Hook(
            "execute_using_pool(self, pool, **kwargs)",
            "wrapped: a task that no process can be given is a dead letter",
            "celery.worker.worker:WorkController._process_task",
        ),
    ),
    ("celery.worker.state", "workers/guard.py"): (
        Hook("should_terminate", "read: whether we ended the child ourselves", "maybe_shutdown"),
    ),
    ("celery.concurrency.base:BasePool", "workers/guard.py"): (
        Hook(
            "_pool",
            "read: billiard's pool",
            "celery.concurrency.prefork:TaskPool.num_processes",
            made_in="celery.concurrency.prefork:TaskPool.on_start",
        ),
    ),
    ("billiard.pool:Pool", "workers/guard.py"): (
        Hook("_cache", "read: the job of a task that could not be given to a process", made_in="__init__"),
    ),
    ("billiard.pool:ApplyResult", "workers/guard.py"): (
        Hook("_callback", "read: whose job it is", "_set", made_in="__init__"),
    ),
    ("celery.worker.request:Request", "workers/metrics.py"): (
        Hook("_already_cancelled", "read: what the broker has back is not counted", made_in="_announce_cancelled"),
        Hook("_already_revoked", "read: the same", made_in="_announce_revoked"),
    ),
    ("celery.app.base:Celery", "workers/task.py"): (
        Hook(
            "__header__",
            "replaced: arguments are checked against the function that is wrapped",
            "celery.app.task:Task.apply_async",
            made_in="_task_from_fun",
        ),
    ),
    ("celery.app.task:Context", "workers/task.py"): (
        Hook("retries", "changed: a header of null is no count", "as_execution_options"),
        Hook("headers", "changed: the next attempt has none of this one's ledger", "as_execution_options"),
    ),
    ("celery.utils.functional", "workers/task.py"): (Hook("head_from_fun(fun, bound=False)", "called: makes it"),),
    ("celery.app.base:Celery", "workers/validation.py"): (
        Hook("__header__", "called: a message's arguments against the task's parameters", made_in="_task_from_fun"),
    ),
    ("celery.app.task", "workers/validation.py"): (
        Hook(
            "Context",
            "read: a header of these names would pass for a part of the request",
            value="args callbacks called_directly chain children chord clear correlation_id delivery_info errbacks eta "
            "expires get group group_index headers hostname id ignore_result is_eager kwargs logfile loglevel origin "
            "parent_id properties replaced_task_nesting reply_to retries root_id shadow soft_time_limit "
            "stamped_headers stamps taskset time_limit timelimit update utc as_execution_options "
            "_children _filter_x_death_headers _get_custom_headers _protected",
        ),
    ),
    ("celery.backends.base:Backend", "workers/resultstore.py"): (
        Hook(
            "_ensure_retryable(self, func, *args, fallback_exc=None, fallback_msg=None, max_retries=None, **kwargs)",
            "replaced on the instance: a store that is away does not hold a worker for minutes",
            "store_result get_task_meta forget",
        ),
        Hook(
            "store_result(self, task_id, result, state, traceback=None, request=None, **kwargs)",
            "replaced on the instance: only a success is worth waiting for",
            "mark_as_done mark_as_failure mark_as_started celery.app.trace:build_tracer.trace_task",
        ),
        Hook(
            "mark_as_done(self, task_id, result, request=None, store_result=True, state='SUCCESS')",
            "replaced on the instance: a result that cannot be stored is carried by the message",
            "celery.app.trace:build_tracer.trace_task",
        ),
        Hook(
            "mark_as_failure(self, task_id, exc, traceback=None, request=None, store_result=True, call_errbacks=True, "
            "state='FAILURE')",
            "replaced on the instance: what comes after the task was done is no failure",
            "celery.app.trace:TraceInfo.handle_failure",
        ),
        Hook(
            "encode(self, data)", "replaced on the instance: nothing is stored that nobody can read", "_get_result_meta"
        ),
        Hook("on_backend_retryable_error(self, exc)", "called: drops a broken connection", "_ensure_retryable"),
        Hook("exception_safe_to_retry(self, exc)", "called: tells a store that is away", "_ensure_retryable"),
    ),
    ("celery.backends.redis:RedisBackend", "workers/resultstore.py"): (
        Hook("connparams", "changed: brief waits", "client", made_in="__init__"),
        Hook("retry_policy", "changed: one try", "ensure"),
        Hook("client", "dropped: it was made with the old ones"),
    ),
    ("celery.backends.database:DatabaseBackend", "workers/resultstore.py"): (
        Hook("engine_options", "changed: brief waits", "ResultSession", made_in="__init__"),
        Hook("session_manager", "read: its tables are left to the children", "ResultSession", made_in="__init__"),
    ),
    ("celery.backends.database.session:SessionManager", "workers/resultstore.py"): (
        Hook("prepared", "changed: whether the tables are there", "prepare_models", made_in="__init__"),
    ),
    ("celery.backends.database.session:SessionManager", "workers/ledgerstore.py"): (
        Hook("get_engine(self, dburi, **kwargs)", "called: the ledger uses the results' connections"),
    ),
    ("celery.backends.redis:RedisBackend", "workers/ledgerstore.py"): (
        Hook("client", "read: the ledger uses the results' connections"),
    ),
    ("celery.app.task:Context", "workers/once.py"): (
        Hook("headers", "changed: what a task sends has none of this attempt's ledger", "as_execution_options"),
    ),
    ("celery.app.task:Task", "workers/pipe.py"): (
        Hook(
            "__trace__",
            "wrapped: a child tells its parent plain data only",
            "celery.app.trace:fast_trace_task",
            made_in="celery.concurrency.prefork:process_initializer",
        ),
    ),
    ("celery.app.trace", "workers/pipe.py"): (
        Hook("saferepr", "replaced: a result whose repr raises is no failure", "build_tracer.trace_task"),
    ),
    ("celery.app.trace:trace_ok_t", "workers/pipe.py"): (
        Hook("_fields", "relied on: a tracer's answer", value=("retval", "info", "runtime", "retstr")),
    ),
    ("celery.app.trace:TraceInfo", "workers/pipe.py"): (
        Hook("state", "read: whether a task is to be retried", made_in="__init__"),
        Hook("retval", "read: what a task raised", "handle_failure", made_in="__init__"),
    ),
    ("celery.exceptions:Retry", "workers/pipe.py"): (
        Hook("sig", "read: whether a next attempt was sent", made_in="__init__"),
    ),
    ("celery.worker.state", "workers/pipe.py"): (
        Hook("should_stop", "changed: ends the worker with that exit code", "maybe_shutdown"),
    ),
    ("billiard.einfo", "workers/report.py"): (
        Hook("ExceptionWithTraceback(exc, tb)", "read: what a pool reports is inside"),
    ),
    ("billiard.einfo:ExceptionInfo", "workers/report.py"): (
        Hook("type", "made: an error from a child's words", "exc_info", made_in="__init__"),
        Hook("tb", "made: the same", "exc_info", made_in="__init__"),
        Hook("exception", "made: the same", "exc_info", made_in="__init__"),
        Hook("traceback", "made: the same", "__str__", made_in="__init__"),
        Hook("internal", "made: the same", made_in="__init__"),
    ),
    ("celery.exceptions:Retry", "workers/report.py"): (
        Hook("exc", "made: the cause of a retry; given to the class, it would be pickled", made_in="__init__"),
    ),
    ("celery.app.base:Celery", "workers/registry.py"): (
        Hook(
            "_tasks", "relied on: every task is put there, which guards it", "_task_from_fun tasks", made_in="__init__"
        ),
        Hook("register_task(self, task, **options)", "relied on: puts a class-based task there, too"),
        Hook("__header__", "made where Celery's decorator has not: arguments are checked", made_in="_task_from_fun"),
    ),
    ("celery.app.task:Task", "workers/registry.py"): (
        Hook("Request", "changed: the guard, whatever the task's class says", "celery.worker.strategy:default"),
        Hook("Strategy", "changed: Celery's own", "start_strategy"),
        Hook("acks_late", "changed: acknowledged when it is done", "celery.worker.request:create_request_cls"),
        Hook("acks_on_failure", "changed: a failure is rejected", "celery.worker.request:Request.on_failure"),
        Hook("acks_on_timeout", "changed: the guard decides", "celery.worker.request:Request.on_timeout"),
        Hook("reject_on_worker_lost", "changed: the guard decides", "celery.worker.request:Request.on_failure"),
        Hook("retry_on_worker_lost", "changed: the guard decides", "celery.worker.request:Request.on_failure"),
        Hook("retry(self, args, kwargs, exc, throw, ...)", "replaced on the instance: tells no arguments"),
    ),
    ("celery.exceptions:Retry", "workers/registry.py"): (
        Hook("excs", "changed: a class and a text, where Celery has the repr", "__str__", made_in="__init__"),
    ),
    ("celery.exceptions:MaxRetriesExceededError", "workers/registry.py"): (
        Hook("task_args", "changed: tells no arguments", made_in="__init__"),
        Hook("task_kwargs", "changed: the same", made_in="__init__"),
    ),
    ("celery.app.task:Context", "workers/chords.py"): (
        Hook("headers", "changed: how far a chord's members were", "as_execution_options"),
    ),
    ("celery.app.builtins:add_unlock_chord_task", "workers/chords.py"): (
        Hook(
            "unlock_chord(self, group_id, callback, interval, max_retries, result, ...)",
            "relied on: looks again by `retry`, and has `result` by name",
        ),
    ),
    ("celery.backends.base:Backend", "workers/ending.py"): (
        Hook(
            "_fail_chain(self, chain, exc, traceback=None, store_result=True, state='FAILURE')",
            "called: the later steps of a chain",
            "mark_as_failure",
        ),
        Hook("_call_task_errbacks(self, request, exc, traceback)", "called: errbacks", "mark_as_failure"),
        Hook("on_chord_part_return(self, request, state, result, **kwargs)", "called: the chord", "mark_as_failure"),
        Hook("exception_safe_to_retry(self, exc)", "called: tells a store that is away"),
    ),
    ("billiard.einfo", "workers/guard.py"): (
        Hook("ExceptionInfo(exc_info=None, internal=False)", "made: what an event and a signal tell of an end"),
    ),
}
