"""What an exporter has counted, on disk: written whole or not at all, before it is acknowledged or shown."""

from __future__ import annotations

import gzip
import json
import logging
import time
import uuid
import zlib
from typing import TYPE_CHECKING, Any

from ops.exposition import rendering
from ops.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger("ops.exporter")

VERSION = 1

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Checkpoint:
    """One exporter's file in a folder; `zcat` shows it."""

    def __init__(self, folder: Path, exporter_id: str) -> None:
        self.path = folder / f"exporter-{exporter_id}.json.gz"
        #: Seconds since the epoch of the last success.
        self.saved_at = 0.0
        self._generation = ""

    def try_out(self) -> None:
        """See whether the folder can be used.

        Raises:
            OSError: it cannot.
        """
        probe = self.path.with_suffix(".probe")
        replace_file(probe, b"", 0o600)
        probe.unlink()

    def load(self, take: Callable[[dict[str, Any]], None]) -> None:
        """Hand over what stands in the file, unless there is none, or it is what we wrote or read last.

        A damaged file is moved aside.

        Args:
            take: takes the state whole, or raises ValueError, KeyError or TypeError and takes nothing.

        Raises:
            OSError: it cannot be read.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        try:
            data = json.loads(gzip.decompress(content))
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}")
            if data["generation"] != self._generation:
                take(data["state"])
                self._generation = data["generation"]
        except (ValueError, EOFError, KeyError, TypeError, zlib.error, gzip.BadGzipFile) as exc:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            self.path.replace(aside)
            logger.error("%s is damaged (%s): it is now %s, and counting begins anew", self.path, exc, aside.name)  # noqa: TRY400

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file's content.

        Raises:
            OSError: it cannot be written; what was there stays.
        """
        generation = str(uuid.uuid4())
        content = f'{{"version":{VERSION},"generation":"{generation}","state":{packed(state)}}}'
        replace_file(self.path, gzip.compress(content.encode(), 1), 0o600)
        self._generation, self.saved_at = generation, time.time()


def packed(state: dict[str, Any]) -> str:
    """The state as JSON, its lists item by item: the whole at once would hold up a scrape for as long as it takes."""
    parts = []
    for name, value in state.items():
        items = []
        for item in value if isinstance(value, list) else ():
            rendering.give_way()
            items.append(_encode(item))
        text = "[" + ",".join(items) + "]" if isinstance(value, list) else _encode(value)
        parts.append(f"{_encode(name)}:{text}")
    return "{" + ",".join(parts) + "}"
