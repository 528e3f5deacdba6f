"""Warren's pool in a module called as Celery's: by that name its test worker knows that children log for themselves."""

from workers import limits


class TaskPool(limits.TaskPool):
    """Warren's pool."""
