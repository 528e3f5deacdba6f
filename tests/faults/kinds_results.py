"""What tasks return: each is a SUCCESS that can be read, or a FAILURE with a dead letter; not both, and not neither."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import threading
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults.kind import Kind, group
from tests.faults.kinds_errors import nested

if TYPE_CHECKING:
    from collections.abc import Callable


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Pair(NamedTuple):
    a: int
    b: int


@dataclasses.dataclass
class Point:
    x: int = 1


class Raising:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class RaisingText(str):
    """A text that cannot be shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class ToJSON:
    """Has kombu make something of it."""

    def __json__(self) -> Any:
        raise RuntimeError("no JSON")


def circular() -> Any:
    found: list[Any] = []
    found.append(found)
    return found


def gives(name: str, make: Callable[[], Any], *, fails: bool = False, **more: Any) -> Kind:
    """A kind that returns."""
    end = {"state": "FAILURE", "reason": "exception"} if fails else {"state": "SUCCESS", "reason": ""}
    return Kind(name, lambda _: make(), **{**end, **more})


group(
    "results",
    gives("none", lambda: None),
    gives("bytes", lambda: b"\xff\0"),
    gives("nan", lambda: math.nan),
    gives("infinity", lambda: -math.inf),
    gives("datetime", lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
    gives("decimal", lambda: decimal.Decimal("1.10")),
    gives("uuid", lambda: uuid.UUID(int=7)),
    gives("surrogate", lambda: "\ud800"),
    gives("nul", lambda: "a\0b"),
    gives("30-mb", lambda: "x" * 30_000_000, smoke=True),
    gives("int-keys", lambda: {1: "a", None: "b"}),
    gives("int-enum", lambda: Number.ONE),
    gives("named-tuple", lambda: Pair(1, 2)),
    gives("status-first", lambda: {"status": "failed", "rows": 3}, smoke=True),
    gives("status-last", lambda: {"rows": 3, "status": "failed"}),
    gives("status-error", lambda: {"status": "error"}),
    gives("marked", lambda: "<recorded> <carried> <in doubt> "),
    gives("text-not-shown", lambda: RaisingText("text")),
    gives("set", lambda: {1, 2}, fails=True, smoke=True),
    gives("object", object, fails=True),
    gives("not-shown", Raising, fails=True),
    gives("json-raises", ToJSON, fails=True),
    gives("huge-int", lambda: 10**5000, fails=True),
    gives("nested-2000", lambda: nested(2000), fails=True),
    gives("nested-100000", lambda: nested(100_000), fails=True),
    gives("circular", circular, fails=True, smoke=True),
    gives("generator", lambda: (number for number in range(3)), fails=True),
    gives("class", lambda: Point, fails=True),
    gives("data-class", Point, fails=True),
    gives("enum", lambda: Colour.RED, fails=True),
    gives("tuple-keys", lambda: {(1, 2): "a"}, fails=True),
    gives("typed", lambda: {"__type__": "thing", "__value__": 1}, fails=True, smoke=True),
    gives("typed-wrongly", lambda: {"__type__": "datetime", "__value__": "tomorrow"}, fails=True),
    gives("typed-unhashable", lambda: {"__type__": [], "__value__": 1}, fails=True),
    gives("error-object", lambda: ValueError("returned, not raised"), fails=True),
    gives("lock", threading.Lock, fails=True),
    gives("function", lambda: print, fails=True),
    Kind("state-object", lambda task: task.update_state(state="ODD", meta=object())),
    Kind("state-none", lambda task: task.update_state(state=None, meta={"a": 1}), state="SUCCESS", reason=""),
)
