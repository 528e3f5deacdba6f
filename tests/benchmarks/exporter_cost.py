"""What measuring costs: processor time of a worker for a task, and messages."""

from __future__ import annotations

import statistics
import time

from tests.benchmarks.lane import Bench, spread, wait_for
from tests.integration.exporters import flood

#: As `tests.benchmarks.metered` has them.
BLOCK, LEAD_IN = 250, 25


def events(bench: Bench) -> None:
    """How many messages about tasks workers publish to the exchange of events."""
    with bench.worker(name="events"), bench.app.connection_for_read() as connection, connection.channel() as opened:
        queue = opened.queue_declare("", exclusive=True).queue
        opened.queue_bind(queue, "celeryev", "task.#")
        flood(bench.app, "math.add", (1, 2), 500)
        wait_for(bench.empty, "the queue did not drain")
        time.sleep(1.5)
        seen = opened.queue_declare(queue, passive=True).message_count
    bench.note(part="events", ours=seen, tasks=500)
    bench.figure("events a task", f"{seen / 500:g}", "3 of the worker, 1 of the producer")


def cost(bench: Bench) -> None:
    """Processor time of a no-op task: without measuring, with it, and without it but with events; block by block."""
    path = bench.stack.folder / "blocks"
    path.unlink(missing_ok=True)
    wanted = 3 * bench.rounds
    with bench.worker("-E", name="cost", BENCH_BLOCKS=str(path)):
        flood(bench.app, "math.add", (1, 2), BLOCK * (wanted + 6))
        wait_for(
            lambda: path.exists() and len(path.read_text().splitlines()) >= wanted + 3, "the blocks did not end", 1200
        )
        bench.purge()
    # While the queue is being filled and the worker warms up, a block is unlike the others.
    lines = [line.split() for line in path.read_text().splitlines()][3 : wanted + 3]
    rounds = [{name: [*map(float, spent)] for name, *spent in lines[at : at + 3]} for at in range(0, wanted, 3)]
    tasks = BLOCK - LEAD_IN
    for number, blocks in enumerate(rounds):
        microseconds = {name: [round(seconds / tasks * 1e6, 1) for seconds in spent] for name, spent in blocks.items()}
        bench.note(part="cost", round=number, main_all_measuring_us=microseconds)

    def added(name: str) -> list[float]:
        return [(blocks[name][0] - blocks["unmetered"][0]) / tasks * 1e6 for blocks in rounds]

    whole = [blocks["unmetered"][1] / tasks * 1e6 for blocks in rounds]
    ours, events = added("ours"), added("events")
    shares = {
        name: [100 * more / all_ for more, all_ in zip(values, whole, strict=True)]
        for name, values in (("ours", ours), ("events", events))
    }
    direct = [blocks["ours"][2] / tasks * 1e6 for blocks in rounds]
    within = [100 * spent / all_ for spent, all_ in zip(direct, whole, strict=True)]
    sent = [sent_event_cost(bench) for _ in range(bench.rounds)]
    both = statistics.median(events) + statistics.median(sent)
    bench.note(part="cost", sent_event_us=[round(value, 1) for value in sent])
    bench.figure("cost of measuring", f"{spread(within)} %, timed", "-")
    bench.figure("the same, compared", f"{spread(shares['ours'])} %", f"{spread(shares['events'])} % (-E)")
    bench.figure(
        f"cost of measuring, us a task of {statistics.median(whole):.0f}",
        f"{spread(direct)} timed, {spread(ours)} compared",
        f"{spread(events)} and {spread(sent)} of the producer",
    )
    ratio = 100 * statistics.median(direct)
    bench.figure(
        "cost to that of -E with sent events",
        f"{ratio / both:.1f} % ({ratio / statistics.median(events):.1f} % of -E alone)",
    )


def sent_event_cost(bench: Bench) -> float:
    """Processor microseconds that the event `task-sent` costs a producer."""
    found = []
    for sending in (False, True):
        bench.app.conf.task_send_sent_event = sending
        begun = time.process_time()
        for _ in range(200):
            bench.app.send_task("math.add", (1, 2), ignore_result=True)
        found.append((time.process_time() - begun) / 200 * 1e6)
    bench.app.conf.task_send_sent_event = False
    bench.purge()
    return found[1] - found[0]
