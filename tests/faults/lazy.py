"""A library that only a process that runs a task can import, as heavy ones and generated code may be."""

from celery import current_task

if not current_task:
    raise RuntimeError("imported where no task runs")


class LazyError(Exception):
    """Its error."""
