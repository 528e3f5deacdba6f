"""Dead letters that their retention deleted, counted; no Celery import."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from queues.topology import Topology

#: Why the broker deletes a dead letter, as it calls it: no room, or its time is over.
DELETIONS = ("maxlen", "expired")
#: The label of what is none of the known values: no message can make a series of its own.
OTHER = "other"


def count(headers: Iterable[Any], topology: Topology) -> dict[str, Counter[str]]:
    """How many dead letters of each work queue were deleted, by reason, from the headers of what was deleted."""
    queues = {queue.dead_letter: queue.name for queue in topology}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for one in headers:
        deaths = one.get("x-death") if isinstance(one, dict) else None
        for death in deaths if isinstance(deaths, list) else []:
            # Its earlier deaths, in the work queue and in delays, stand there, too.
            if isinstance(death, dict) and (queue := queues.get(str(death.get("queue")))):
                reason = death.get("reason")
                found[queue][reason if reason in DELETIONS else OTHER] += 1
                break
    return dict(found)


def snapshot(worker: str, queue: str, counts: Mapping[str, int]) -> bytes:
    """A count as a message of `workers.metrics`, from an incarnation that says this and no more."""
    now = time.time()
    message = {
        "version": 1,
        "incarnation": str(uuid.uuid4()),
        "worker": worker,
        "queue": queue,
        "seq": 1,
        "started_at": now,
        "sent_at": now,
        "full": True,
        "gauges": {},
        "bounds": (),
        "series": [("letters_deleted", OTHER, reason, number) for reason, number in sorted(counts.items())],
    }
    return json.dumps(message).encode()
