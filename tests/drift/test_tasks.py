"""Task modules and stubs against the table."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from queues.tasks import STUBS
from queues.topology import QUEUES, QueueSpec

if TYPE_CHECKING:
    from pathlib import Path


def parameters(function: ast.FunctionDef) -> list[tuple[str, str | None]]:
    """Names, and defaults as written; a bound task's `self` is Celery's."""
    arguments = function.args
    positional = [argument.arg for argument in arguments.args if argument.arg != "self"]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + [ast.unparse(item) for item in arguments.defaults]
    keywords = [
        (argument.arg, ast.unparse(item) if item else None)
        for argument, item in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return [*zip(positional, defaults, strict=True), *keywords]


def registered(path: Path) -> dict[str, ast.FunctionDef]:
    """Functions by the task name that a decorator gives them."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("register", "stub"):
                    found[ast.literal_eval(decorator.args[0])] = node
    return found


@pytest.mark.parametrize("queue", list(QUEUES), ids=lambda queue: queue.name)
def test_the_module_registers_the_tables_tasks(project: Path, queue: QueueSpec) -> None:
    path = project / f"{queue.module.replace('.', '/')}.py"
    assert path.exists(), f"{path.relative_to(project)} is missing"
    names = {task.name for task in queue.tasks}
    assert set(registered(path)) == names, f"{path.relative_to(project)} registers other tasks than the table's row"


@pytest.mark.parametrize("name", QUEUES.task_names)
def test_each_stub_has_its_tasks_parameters(project: Path, name: str) -> None:
    assert name in STUBS, f"queues/tasks.py has no stub of {name}"
    stub = registered(project / "queues" / "tasks.py")[name]
    path = project / f"{QUEUES.task(name)[0].module.replace('.', '/')}.py"
    if path.exists():
        assert parameters(stub) == parameters(registered(path)[name]), f"{name}: queues/tasks.py and {path.name} differ"
