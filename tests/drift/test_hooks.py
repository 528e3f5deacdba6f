"""The register of private hooks against the installed libraries."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.drift.library import problem
from tests.drift.sources import Project
from workers.hooks import HOOKS, TESTED, Hook

if TYPE_CHECKING:
    from pathlib import Path

#: How `why` begins where the name itself need not stand in the file.
UNNAMED = ("relied on", "written out")


def identity(hook: Hook) -> str:
    """A hook's name in this test."""
    return f"{hook.path}-{hook.used_in}"


@pytest.mark.parametrize("hook", HOOKS, ids=identity)
def test_a_hook_is_in_the_installed_library(hook: Hook) -> None:
    found = problem(hook)
    if found:
        pytest.fail(found, pytrace=False)


def test_every_reach_into_a_library_is_registered(project: Path) -> None:
    known = {(hook.used_in, hook.attribute) for hook in HOOKS}
    reaches = sorted(Project(project, ("queues", "workers", "ops")).reaches())
    new = [
        f"{reach.file}:{reach.line} {reach.how} {reach.name}"
        for reach in reaches
        if (reach.file, reach.name) not in known
    ]
    assert not new, "add a row to workers/hooks/ for each, with its reason (docs/hooks.md):\n" + "\n".join(new)


def test_every_row_is_used_by_its_file(project: Path) -> None:
    texts = {hook.used_in: (project / hook.used_in).read_text() for hook in HOOKS}
    stale = [
        identity(hook)
        for hook in HOOKS
        if not hook.why.startswith(UNNAMED) and not re.search(rf"\b{hook.attribute}\b", texts[hook.used_in])
    ]
    assert not stale, "these rows are no longer needed: remove them from workers/hooks/"
    assert [name for name, count in Counter(map(identity, HOOKS)).items() if count > 1] == []
    tables = [path.read_text() for path in (project / "workers" / "hooks").glob("*.py")]
    assert sum(len(re.findall(r"\bHook\(", text)) for text in tables) == len(HOOKS), (
        "an owner and file stand twice in one table: the first rows are lost"
    )


def test_the_tested_minors_are_those_that_the_project_admits_and_pins(project: Path) -> None:
    stated = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    lists = [stated["dependencies"], *stated["optional-dependencies"].values()]
    wanted = [one for one in (Requirement(text) for texts in lists for text in texts) if one.name in TESTED]
    assert {one.name for one in wanted} == set(TESTED), "bound each in pyproject.toml"
    pinned = dict(re.findall(r"^([a-z-]+)==(\S+)", (project / "requirements.txt").read_text(), re.MULTILINE))
    for one in wanted:
        major, minor = map(int, TESTED[one.name].split("."))
        assert not one.specifier.contains(f"{major}.{minor + 1}"), f"pyproject.toml: bound {one} by its tested minor"
        assert not one.specifier.contains(f"{major}.{minor - 1}.99"), f"pyproject.toml: bound {one} by its tested minor"
        assert one.specifier.contains(pinned[one.name]), f"requirements.txt: {one.name}: run `make requirements`"
        assert Version(pinned[one.name]).release[:2] == (major, minor)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from celery._state import connect_on_app_finalize", {"connect_on_app_finalize"}),
        ("from billiard.pool import _set_result", {"_set_result"}),
        ("def size(pool):\n    return len(pool._pool._cache)", {"_pool", "_cache"}),
        ("import billiard\ndef name(job):\n    return getattr(job, '_job', None)", {"_job"}),
        ("import billiard\ndef name(job):\n    return job.__dict__['discarded']", {"discarded"}),
        ("from celery.app.task import Context\nnames = vars(Context)", {"Context"}),
        ("from celery import beat\nbeat.event_t = tuple", {"event_t"}),
        ("from celery.app import control\ndef swap(app):\n    app.mailbox = None", {"mailbox"}),
        ("from celery import Celery\nclass App(Celery):\n    def send_task(self):\n        pass", {"send_task"}),
        ("from celery import Celery\nclass App(Celery):\n    def _after_fork(self):\n        pass", {"_after_fork"}),
        ("import celery\nclass App(celery.Celery):\n    Pickler = None", {"Pickler"}),
        ("from celery import Celery\nclass App(Celery):\n    def end(self):\n        self._pool = None", {"_pool"}),
        ("from amqp import Channel\nclass Ours(Channel):\n    def end(self):\n        self.events = 1", {"events"}),
        (
            "from amqp.transport import TCPTransport as T\nclass A:\n    def _connect(self): ...\nclass B(A, T): ...",
            {"_connect"},
        ),
        (
            "from celery.worker.consumer import Consumer as C\nclass D(C):\n class Blueprint(C.Blueprint):\n  name = 1",
            {"Blueprint", "name"},
        ),
        ("class Own:\n    def __init__(self):\n        self._x = 1\ndef f(own):\n    own._x = 2", set()),
        (
            "from celery import bootsteps\nclass Step(bootsteps.StartStopStep):\n    def start(self, c):\n        pass",
            set(),
        ),
        ("import celery\ndef f(app):\n    app.conf.timezone = 'UTC'\n    return app.__class__.__name__", set()),
    ],
)
def test_a_new_reach_is_found(tmp_path: Path, code: str, names: set[str]) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "new.py").write_text(code)
    assert {reach.name for reach in Project(tmp_path, ("workers",)).reaches()} == names
