"""Names of the headers that Warren puts on messages, besides the stamps of `queues.publish`."""

#: Why a message is a dead letter: a short reason for programs, the error's text, the worker that gave it up, when
#: (seconds since the epoch), and the work queue that it was in.
REASON = "x-dead-reason"
ERROR = "x-dead-error"
WORKER = "x-dead-worker"
AT = "x-dead-at"
QUEUE = "x-dead-queue"

#: How often a message was replayed from the dead letters.
REPLAYS = "x-replays"
#: How often a process died that ran the task, and which one died last: `PID@NODE`.
CHILD_DEATHS = "x-child-deaths"
DEAD_PROCESS = "x-dead-process"

#: The run of a `once` task that a dead letter's doubt is about.
DOUBT = "x-ledger-doubt"
#: What an operator found out about an attempt in doubt: `done` or `not-done`, and the run or attempt that it is about.
VERDICT = "x-ledger-verdict"
#: The run whose claim this message made, where the answer to the claim was lost.
CLAIM = "x-ledger-claim"
#: An outcome that could not be recorded, carried by the message until it can.
OUTCOME = "x-ledger-outcome"
#: What belongs to one attempt, and not to the next.
LEDGER = (DOUBT, VERDICT, CLAIM, OUTCOME, DEAD_PROCESS)
#: How many of a chord's members had a result when its unlocking looked, and since when.
CHORD = "x-chord"


def attempt_name(task_id: str, replays: int, retries: int) -> str:
    """What a verdict calls an attempt whose run it does not know."""
    return f"{task_id}/{replays}/{retries}"
