"""Messages that no worker can run: the malformed set, random bodies, and bombs."""

from __future__ import annotations

import bz2
import json
import random
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A body that runs.
BODY = json.dumps([[0.0], {}, {}]).encode()


def headers(**changes: Any) -> dict[str, Any]:
    """The headers of a good message, with changes; None drops one."""
    found = {
        "lang": "py",
        "task": "faults.run",
        "id": str(uuid.uuid4()),
        "root_id": None,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "timelimit": [None, None],
        "eta": None,
        "expires": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "faults",
        **changes,
    }
    return {name: value for name, value in found.items() if name not in changes or value is not None}


def malformed() -> dict[str, tuple[bytes, dict[str, Any], dict[str, Any]]]:
    """The 14 messages of the set: body, headers, properties."""
    plain: dict[str, Any] = {}
    return {
        "no id": (BODY, headers(id=None), plain),
        "null": (b"null", headers(), plain),
        "a number": (b"5", headers(), plain),
        "two members": (b"[1, 2]", headers(), plain),
        "bad time limit": (BODY, headers(timelimit="zz1"), plain),
        "no JSON": (b"[[1, 2], {}, ", headers(), plain),
        "compression header": (BODY, headers(compression="application/x-gzip"), plain),
        "args no list": (b'[{"x": 1}, {}, {}]', headers(), plain),
        "embed no object": (b"[[0.0], {}, 7]", headers(), plain),
        "pickle": (b"\x80\x04N.", headers(), {"content_type": "application/x-python-serialize"}),
        "unknown content type": (BODY, headers(), {"content_type": "application/x-nothing"}),
        "unknown task": (BODY, headers(task="faults.nothing"), plain),
        "no headers": (BODY, {}, plain),
        "bad eta": (BODY, headers(eta="tomorrow"), plain),
    }


def noise(count: int, seed: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Random bodies under headers of which some were changed at random."""
    source = random.Random(seed)
    junk: list[Any] = [None, 5, -1, "", "x" * 300, [1], {"a": 1}, True, 2.5]
    for _ in range(count):
        found = headers()
        for name in source.sample(sorted(found), source.randint(0, 3)):
            found[name] = source.choice(junk)
        kind = source.randrange(4)
        body: bytes | bytearray
        if kind == 0:
            body = source.randbytes(source.randint(0, 200))
        elif kind == 1:
            body = json.dumps(source.choice(junk)).encode()
        elif kind == 2:
            body = BODY
        else:
            body = bytearray(BODY)
            body[source.randrange(len(body))] = source.randrange(256)
        yield bytes(body), found


def bomb() -> bytes:
    """A few hundred bytes that hold 300 MB."""
    return bz2.compress(b"0" * 300_000_000)
