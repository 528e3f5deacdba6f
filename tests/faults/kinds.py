"""All kinds, by group."""

from tests.faults import kinds_errors, kinds_leftovers, kinds_limits, kinds_results  # noqa: F401 - each adds its group
from tests.faults.kind import KINDS, find

__all__ = ["KINDS", "find"]
