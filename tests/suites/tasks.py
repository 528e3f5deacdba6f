"""The queue's module: Celery's test tasks."""

import importlib

integration = importlib.import_module("t.integration.tasks")
