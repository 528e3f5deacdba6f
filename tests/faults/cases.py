"""All cases, in the order in which they are run."""

from tests.faults import cases_broker, cases_messages, cases_producers, cases_security, cases_workers, registry

_ORDER = [module.__name__ for module in (cases_workers, cases_broker, cases_producers, cases_messages, cases_security)]
CASES = dict(sorted(registry.CASES.items(), key=lambda item: _ORDER.index(item[1].run.__module__)))
