"""All cases, in the order in which they are run."""

from tests.faults import (
    cases_broker,
    cases_messages,
    cases_own,
    cases_producers,
    cases_security,
    cases_workers,
    registry,
)

_MODULES = (cases_workers, cases_broker, cases_producers, cases_messages, cases_security, cases_own)
_ORDER = [module.__name__ for module in _MODULES]
CASES = dict(sorted(registry.CASES.items(), key=lambda item: _ORDER.index(item[1].run.__module__)))
FAMILIES = {case.family for case in CASES.values() if case.family}
