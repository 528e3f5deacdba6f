"""What users' own code does to a worker: one kind after the other, tasks at all its places behind each."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sqlite3
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import chord

from tests.faults.journal import VARIABLE
from tests.faults.kinds import KINDS
from tests.faults.kinds_limits import PIDS
from tests.faults.lab import STORES, make_store, stock_results
from tests.faults.registry import each
from tests.faults.trial import START
from tests.faults.worker import Worker
from tests.integration.helpers import awaited, messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.canvas import Signature

    from tests.faults.kind import Kind
    from tests.faults.trial import Trial

FAMILY = "own-code"
#: Processes of a worker.
PLACES = 2
#: Seconds until the tasks behind a kind have run.
PATIENCE = 15.0
#: Further looks where not all places had run one.
AGAIN = 3
#: And until what a publisher has published is worked off.
LOADED = 60.0
FINAL = ("SUCCESS", "FAILURE")


@dataclass
class Tally:
    """What came of the kinds of one case."""

    ids: dict[str, str] = field(default_factory=dict)
    came: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    places_lost: int = 0
    #: Workers that ended, or consumed no more.
    stopped: int = 0


def state_of(trial: Trial, task_id: str) -> str:
    """What the result store says, and whether it can be read."""
    result = trial.side.producer.AsyncResult(task_id)
    try:
        if result.state == "SUCCESS":
            result.get(timeout=5)
    except Exception as exc:  # noqa: BLE001 - whatever a reader meets
        return f"unreadable ({type(exc).__name__})"
    return str(result.state)


def await_state(trial: Trial, task_id: str, patience: float = PATIENCE) -> str:
    """The state, as soon as it is a last one."""
    awaited(lambda: state_of(trial, task_id).startswith((*FINAL, "unreadable")), patience)
    return state_of(trial, task_id)


def play(trial: Trial, group: str, environment: dict[str, str] | None = None) -> None:
    """Run the kinds of a group, and look at the states, dead letters, runs and places of each."""
    kinds = [kind for kind in KINDS[group].values() if kind.smoke or not trial.short]
    environment = environment or {}
    trial.start(environment=environment)
    tally = Tally()
    for kind in kinds:
        one(trial, kind, tally, environment)
    trial.settle(30)
    reasons = reasons_of(trial)
    for kind in kinds:
        task_id = tally.ids[kind.name]
        state, runs = state_of(trial, task_id), trial.started(task_id)
        letters = trial.side.dead is not None
        tally.came[kind.name] = came = kind.came(state, reasons[task_id], runs, letters=letters)
        if state in FINAL:
            trial.told.add(task_id)
        if not kind.agrees(state, reasons[task_id], runs, letters=letters):
            tally.wrong.append(f"{kind.name}: {came}; wanted {kind.wanted(letters=letters)}")
    tell(trial, tally, f"{len(kinds)} kinds")


def one(trial: Trial, kind: Kind, tally: Tally, environment: dict[str, str]) -> None:
    """One kind, and a good task at each place behind it."""
    task_id = tally.ids[kind.name] = str(uuid.uuid4())
    if kind.state != "SUCCESS":
        trial.guilty.add(task_id)
    trial.allowed += kind.deaths + (PLACES if kind.alone else 0)  # processes that are replaced may not have answered
    worker = trial.workers[0]
    trial.send(kind.task, (kind.name,), task_id=task_id)
    places = meet(trial, worker, kind.name)
    ended = await_state(trial, task_id, 1 if worker.exits else kind.patience) in FINAL
    # What it has published is out of the way of the next.
    patience = LOADED if kind.task == "faults.brief" else 5
    awaited(lambda: worker.exits or not (trial.side.counts(trial.side.queue) or (0, 0))[0], patience)
    for number in range(AGAIN):  # what is merely slow, or comes again, is not lost
        if places < PLACES and not worker.exits:
            places = meet(trial, worker, f"{kind.name}-{number}")
    tally.places_lost += PLACES - places
    if worker.exits or places < PLACES or not ended:
        consumes = (trial.side.counts(trial.side.queue) or (0, 0))[1]
        tally.stopped += bool(worker.exits or not consumes)
        renew(trial, environment)
    elif kind.alone:
        replace_processes(worker)


def meet(trial: Trial, worker: Worker, name: str) -> int:
    """Send a good task for each place; how many places ran one at the same time."""
    folder, good = trial.folder / "places" / name, {str(uuid.uuid4()) for _ in range(PLACES)}
    folder.mkdir(parents=True)
    for task_id in good:
        trial.send("faults.meet", (str(folder), PLACES), task_id=task_id)
    awaited(lambda: worker.exits or good <= trial.runs().finished.keys(), PATIENCE)
    met = sum((folder / str(number)).exists() for number in range(PLACES))
    return min(met, 1) if (folder / "alone").exists() else met


def renew(trial: Trial, environment: dict[str, str]) -> None:
    """Another worker, without what the last one kept."""
    trial.stop(4)
    trial.kept |= {mark for mark, _ in trial.side.drain(trial.side.queue)}
    trial.start(environment=environment)


def replace_processes(worker: Worker) -> None:
    """What a task changed in its process is gone."""
    before = worker.children()
    for pid in before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    awaited(lambda: len({*worker.children()} - {*before}) >= PLACES, 20)


def reasons_of(trial: Trial) -> dict[str, Counter[str]]:
    """The reasons of the dead letters of each id."""
    from queues.headers import REASON

    found: dict[str, Counter[str]] = {task_id: Counter() for task_id in trial.sent().all}
    if trial.side.dead:
        for message in messages(trial.side.viewer, trial.side.dead):
            headers = message.headers or {}
            found.setdefault(str(headers.get("id")), Counter())[str(headers.get(REASON, "by the broker"))] += 1
    return found


def tell(trial: Trial, tally: Tally, what: str) -> None:
    """The remark, the raw figures, and what is missed."""
    wrong = f" ({', '.join(text.partition(':')[0] for text in tally.wrong)})" if tally.wrong else ""
    lost = f"workers stopped {tally.stopped}, places lost {tally.places_lost}"
    trial.line.note = f"{what}: {len(tally.wrong)} not as they should be{wrong}; {lost}"
    trial.line.figures |= {
        "kinds": tally.came,
        "wrong": tally.wrong,
        "stopped": tally.stopped,
        "places_lost": tally.places_lost,
    }
    if trial.ours:
        for text in tally.wrong:
            trial.require(False, text)
        trial.require(not tally.stopped, f"{tally.stopped} workers stopped")
        trial.require(not tally.places_lost, f"{tally.places_lost} places lost")


@each("own-errors", "errors of every kind, two good tasks at once behind each", bound=1800, smoke=True, family=FAMILY)
def own_errors(trial: Trial) -> None:
    """Each is a FAILURE and one dead letter."""
    play(trial, "errors")


@each("own-results", "results of every kind, two good tasks behind each", bound=1800, smoke=True, family=FAMILY)
def own_results(trial: Trial) -> None:
    """Each is a SUCCESS that can be read, or a FAILURE and one dead letter."""
    play(trial, "results")


@each("own-leftovers", "a process changed by its task, good tasks behind it", bound=1800, smoke=True, family=FAMILY)
def own_leftovers(trial: Trial) -> None:
    """The task is a SUCCESS, and the good ones run."""
    play(trial, "leftovers")


@each("own-limits", "publishers and programs that do not end", bound=900, family=FAMILY)
def own_limits(trial: Trial) -> None:
    """Each ends at its limits, once, and its program with it."""
    folder = trial.folder / "pids"
    folder.mkdir()
    play(trial, "limits", {PIDS: str(folder)})
    left = [int(path.name) for path in folder.iterdir() if Path(f"/proc/{path.name}").exists()]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    trial.line.note += f"; programs left {len(left)}"
    trial.require(not left or not trial.ours, f"{len(left)} programs outlived their tasks")


@dataclass(frozen=True, slots=True)
class Start:
    """How a worker is started: a module's source, or settings; what its log must say, where it must not run.

    Attributes:
        name: in the remark.
        module: what the module of the tasks does at import.
        says: is in the log; empty where the worker must run.
        change: of a file of the project: its path, a text, and another.
        environment: more settings.
        ours: whether stock Celery has nothing of the kind.
        smoke: whether the smoke has it.
    """

    name: str
    module: str = ""
    says: str = ""
    change: tuple[str, str, str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    ours: bool = False
    smoke: bool = False


_ODD = "class Odd(Exception):\n    def __str__(self): return None\nraise Odd"
#: Celery warns a worker that runs as root; where it does is a matter of the machine.
ROOT = "You're running the worker with superuser privileges"
_TABLE = "queues/topology.py"
STARTS = (
    Start("key-error", "import os\nos.environ['API_KEY']", "API_KEY", smoke=True),
    Start("import-error", "import not_installed_here", "not_installed_here"),
    Start("import-of-a-name", "from json import no_such_name", "no_such_name"),
    Start("syntax-error", "def (:", "SyntaxError"),
    Start("name-error", "no_such_name", "no_such_name"),
    Start("own-error", "class Mine(Exception): pass\nraise Mine('of mine')", "of mine"),
    Start("odd-error", _ODD, "Odd"),
    Start("recursion", "def f(): f()\nf()", "RecursionError"),
    Start("base-error", "raise BaseException('neither')", "neither"),
    Start("cancelled", "import asyncio\nraise asyncio.CancelledError('at import')", "CancelledError"),
    Start("exit-0", "raise SystemExit(0)", "SystemExit"),
    Start(
        "unknown-task", "from workers.task import register\nregister('faults.none')(print)", "faults.none", ours=True
    ),
    Start("table-syntax", says="SyntaxError", change=(_TABLE, '"faults"', '"faults'), ours=True),
    Start("table-limits", says="soft_time_limit", change=(_TABLE, "time_limit=60", "time_limit=40"), ours=True),
    Start("table-name", says="lower case", change=(_TABLE, '"faults.run"', '"faults.Run"'), ours=True),
    Start("table-more", says="faults.die", change=(_TABLE, '"faults.die"', '"faults.more"'), ours=True),
    Start("no-password", says="BROKER_PASSWORD_FILE", environment={"BROKER_PASSWORD_FILE": "/nowhere"}, ours=True),
    Start("no-results", says="RESULT_BACKEND", environment={"RESULT_BACKEND": "nothing://"}, ours=True),
    Start("warnings-raise", environment={"PYTHONWARNINGS": f"error,ignore:{ROOT}"}),
    Start("locale", environment={"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Start("zone", environment={"TZ": "Pacific/Kiritimati"}),
    Start("no-home", environment={"HOME": "/nowhere", "TMPDIR": "/nowhere"}),
    Start("optimised", environment={"PYTHONOPTIMIZE": "2"}),
)


@each("own-start", "modules and tables that fail at import, odd surroundings", bound=900, smoke=True, family=FAMILY)
def own_start(trial: Trial) -> None:
    """What cannot heal ends the worker with the reason, all messages kept; they run when it is mended."""
    tally, starts = Tally(), [start for start in STARTS if start.smoke or not trial.short]
    for start in starts:
        if not start.ours or trial.ours:
            tally.came[start.name] = came = begin(trial, start)
            if came != "as it should be":
                tally.wrong.append(f"{start.name}: {came}")
    trial.start()
    trial.settle(30)
    tell(trial, tally, f"{len(tally.came)} starts")


def begin(trial: Trial, start: Start) -> str:
    """Start a worker so; what came of it and of five tasks that wait."""
    for _ in range(5):
        trial.send()
    before = trial.finished()
    worker = launch(trial, start.name, {"FAULTS_MODULE": start.module, **start.environment}, start.change)
    try:
        # One that ends at once is started again: what it takes in its short life is noticed.
        awaited(lambda: len(worker.exits) > 1 or trial.finished() >= before + 5 or dead(trial), START)
    finally:
        worker.stop(10)
    text, codes = worker.log.read_text(errors="replace"), worker.exits
    ran, taken = trial.finished() - before, dead(trial)
    if taken:
        trial.kept |= {mark for mark, _ in trial.side.drain(str(trial.side.dead))}
        return f"{taken} good tasks are dead letters, exit codes {codes}"
    if not start.says:
        return "as it should be" if ran >= 5 and not codes else f"{ran} of 5 ran, exit codes {codes}"
    if ran or not codes:
        return f"it ran {ran} tasks, exit codes {codes}"
    if start.says not in text:
        return f"exit codes {codes}, and no word of {start.says}"
    return "as it should be" if {*codes} == {2} or not trial.ours else f"exit codes {codes}, not 2"


def dead(trial: Trial) -> int:
    """How many dead letters there are."""
    return (trial.side.counts(trial.side.dead) or (0, 0))[0] if trial.side.dead else 0


def launch(trial: Trial, name: str, environment: dict[str, str], change: tuple[str, str, str] | None = None) -> Worker:
    """A worker that need not consume, from a changed copy of the project where something is changed."""
    command = trial.side.command(f"{name}-{os.urandom(3).hex()}")
    if change:
        root, (path, old, new) = trial.folder / name, change
        for package in ("queues", "workers", "tests", "ops"):
            shutil.copytree(Path.cwd() / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        text = (root / path).read_text()
        assert old in text, f"{path}: {old} is gone, mend STARTS"
        (root / path).write_text(text.replace(old, new))
        command, environment = ["env", f"--chdir={root}", *command], {**environment, "PYTHONPATH": str(root)}
    settings = {**trial.side.environment(), VARIABLE: str(trial.journal), **environment}
    return Worker(command, settings, trial.folder / f"{name}.log")


@each("own-store", "the result store is away when a worker starts, each kind of store", bound=600, family=FAMILY)
def own_store(trial: Trial) -> None:
    """It is waited for: not consuming, not healthy; then the worker goes on."""
    tally = Tally()
    for name in STORES:
        tally.came[name] = came = begin_without(trial, name)
        if came != "as it should be":
            tally.wrong.append(f"{name}: {came}")
    trial.settle(5)
    tell(trial, tally, f"{len(STORES)} stores")


def begin_without(trial: Trial, name: str) -> str:
    """Start a worker whose store is away, with five tasks that wait, and bring the store back."""
    folder = trial.folder / name
    folder.mkdir()
    heartbeat = folder / "alive"
    with contextlib.ExitStack() as stack:
        server = make_store(name, folder / "server")
        if server is None:
            path = folder / "results.sqlite"
            url, given = f"db+sqlite:///{path}", {"RESULT_BACKEND": f"db+sqlite:///{path}"}
            store = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
            store.execute("BEGIN EXCLUSIVE")
            back: Callable[[], Any] = functools.partial(store.execute, "COMMIT")
        else:
            stack.enter_context(server)
            url, given, back = stock_results(server, name), server.environment(), server.restart
            server.stop()
        before = trial.finished()
        for _ in range(5):
            trial.send()
        settings = {**given, "HEARTBEAT_FILE": str(heartbeat)} if trial.ours else {"STOCK_RESULTS": url}
        worker = launch(trial, f"without-{name}", settings)
        stack.callback(worker.stop)
        awaited(lambda: dead(trial) or (worker.exits and not trial.ours), 20)
        consumers = (trial.side.counts(trial.side.queue) or (0, 0))[1]
        meanwhile = f"{dead(trial)} dead letters, {consumers} consumers, exit codes {worker.exits}"
        healthy, taken, exits = heartbeat.exists(), dead(trial), list(worker.exits)
        back()
        awaited(lambda: trial.finished() >= before + 5, 60)
        ran = trial.finished() - before
    if taken:
        trial.kept |= {mark for mark, _ in trial.side.drain(str(trial.side.dead))}
    if ran < 5:
        return f"{meanwhile}; then {ran} of 5 ran"
    if trial.ours and (taken or consumers or healthy or exits):
        return f"{meanwhile}, {'' if healthy else 'not '}healthy; then all ran"
    return "as it should be"


@each("own-steps", "steps that fail in every way: chains, chords and callbacks are told", bound=600, family=FAMILY)
def own_steps(trial: Trial) -> None:
    """Whoever waits for a step learns how it ended."""
    trial.start()
    with contextlib.ExitStack() as stack:
        if trial.ours:  # Celery's own task that looks after chords runs in another queue.
            command = [word.replace("faults", "monitor") for word in trial.side.command(os.urandom(3).hex())]
            environment = trial.lab.environment("worker-monitor")
            stack.callback(Worker(command, environment, trial.folder / "monitor.log").stop)
        tally = Tally()
        waits = {name: make(trial) for name, make in STEPS.items()}
        limit = time.monotonic() + 120  # on a busy machine
        for name, wanted in waits.items():
            patience = max(1.0, limit - time.monotonic())
            states = {what: await_state(trial, task_id, patience) for what, (task_id, _) in wanted.items()}
            missed = [f"{what} {states[what]}" for what, (_, state) in wanted.items() if states[what] != state]
            tally.came[name] = ", ".join(f"{what} {state}" for what, state in states.items())
            trial.told |= {task_id for what, (task_id, _) in wanted.items() if states[what] in FINAL}
            if missed:
                tally.wrong.append(f"{name}: {', '.join(missed)}")
        trial.settle(10)
    tell(trial, tally, f"{len(STEPS)} ways")


#: Ids to wait for and the state that each should have, by what they are.
Waits = dict[str, tuple[str, str]]


def failing(trial: Trial, how: str) -> Signature[Any]:
    """A step that fails so."""
    made = {
        "raises": ("faults.own", ["two-arguments"]),
        "cannot be stored": ("faults.own", ["set"]),
        "wrong arguments": ("faults.pair", []),
        "process dies": ("faults.own", ["os-exit"]),
        "time limit": ("faults.brief", ["ignores"]),
    }
    task, args = made[how]
    return guilty(trial, task, args)


def guilty(trial: Trial, task: str, args: list[Any]) -> Signature[Any]:
    """A signature whose dead letter is right."""
    task_id = str(uuid.uuid4())
    trial.guilty.add(task_id)
    immutable = task != "faults.pair"
    found: Signature[Any] = trial.side.producer.signature(
        task, args=args, immutable=immutable, app=trial.side.producer
    ).set(task_id=task_id)
    return found


def good(trial: Trial, value: Any = None, *, immutable: bool = True) -> Signature[Any]:
    """A signature that succeeds."""
    args = [value] if immutable else []
    found: Signature[Any] = trial.side.producer.signature(
        "faults.echo", args=args, immutable=immutable, app=trial.side.producer
    ).set(task_id=str(uuid.uuid4()))
    return found


def send(trial: Trial, canvas: Any, task_id: str) -> None:
    """Publish, counted under the id that is waited for."""
    trial.producer.record(task_id, canvas.apply_async, "canvas")


def alone(trial: Trial, how: str) -> Waits:
    """A task with a callback for its failure."""
    step, told = failing(trial, how), good(trial)
    trial.producer.record(step.options["task_id"], lambda: step.apply_async(link_error=told), "step")
    return {"task": (step.options["task_id"], "FAILURE"), "link_error": (told.options["task_id"], "SUCCESS")}


def second(trial: Trial, how: str) -> Waits:
    """A chain's second step."""
    step, told = failing(trial, how), good(trial)
    send(trial, good(trial, 1) | step.on_error(told), step.options["task_id"])
    return {"step": (step.options["task_id"], "FAILURE"), "link_error": (told.options["task_id"], "SUCCESS")}


def member(trial: Trial, how: str) -> Waits:
    """A chord's member."""
    return chorded(trial, failing(trial, how))


def member_chain(trial: Trial, how: str) -> Waits:
    """The second step of a chord's member."""
    return chorded(trial, good(trial, 1) | failing(trial, how))


def chorded(trial: Trial, failing_member: Any) -> Waits:
    body, told = good(trial, immutable=False), good(trial)
    made = chord([good(trial, 1), failing_member], body.on_error(told), app=trial.side.producer)
    send(trial, made, body.options["task_id"])
    return {"body": (body.options["task_id"], "FAILURE"), "link_error": (told.options["task_id"], "SUCCESS")}


def step(make: Callable[[Trial, str], Waits], how: str) -> Callable[[Trial], Waits]:
    return lambda trial: make(trial, how)


STEPS: dict[str, Callable[[Trial], Waits]] = {
    f"{what}, {how}": step(make, how)
    for what, make in {
        "alone": alone,
        "second": second,
        "chord's member": member,
        "second of a chord's member": member_chain,
    }.items()
    for how in ("raises", "cannot be stored", "wrong arguments", "process dies", "time limit")
}
