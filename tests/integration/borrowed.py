"""The workers' app whose math queue has the module `MATH_MODULE`: `celery -A tests.integration.borrowed worker`."""

import os

from queues.topology import QUEUES

object.__setattr__(QUEUES.queue("math"), "module", os.environ["MATH_MODULE"])

from workers.app import app  # noqa: E402, F401 - the table is read there
