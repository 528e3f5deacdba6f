"""The register of private hooks against the installed libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest


from tests.drift.library import problem
from tests.drift.sources import Project
from workers.hooks import HOOKS, Hook

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: f"{hook.path}-{hook.used_in}")
def test_a_hook_is_in_the_installed_library(hook: Hook) -> None:
    assert problem(hook) is None, problem(hook)


def test_every_reach_into_a_library_is_registered(project: Path) -> None:
    known = {(hook.used_in, hook.attribute) for hook in HOOKS}
    reaches = sorted(Project(project, ("queues", "workers", "ops")).reaches())
    new = [
        f"{reach.file}:{reach.line} {reach.how} {reach.name}"
        for reach in reaches
        if (reach.file, reach.name) not in known
    ]
    assert not new, "add a row to workers/hooks/ for each, with its reason (docs/hooks.md):\n" + "\n".join(new)
