"""The table with tasks of the tests' own in the math queue."""

from dataclasses import replace

from queues.topology import QUEUES, TaskSpec, Topology

TASKS = (
    TaskSpec(name="math.fan_out", soft_time_limit=2, time_limit=5),
    TaskSpec(name="math.announce", soft_time_limit=2, time_limit=4),
    TaskSpec(name="math.charge", soft_time_limit=2, time_limit=4, once=True),
    TaskSpec(name="math.launch", soft_time_limit=2, time_limit=3, max_retries=0),
)

#: How `math.launch` starts programs.
WAYS = (
    *("popen", "stubborn", "grandchild", "left-by-shell", "session", "bare-session"),
    *("daemon", "executed-daemon", "fork", "process", "billiard"),
)

_math = QUEUES.queue("math")
LAB = Topology(tuple(replace(q, tasks=(*q.tasks, *TASKS)) if q == _math else q for q in QUEUES))
