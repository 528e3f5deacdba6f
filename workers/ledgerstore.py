"""Where the ledger's entries are kept: in the server that holds the results, as a table or as keys of their own."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from workers.ledger import LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Delete, Engine, Insert, Select, Table, Update

    from queues.app import WarrenCelery

Answer = TypeVar("Answer")

TABLE = "warren_ledger"
PREFIX = "warren-ledger:"
DAY = 86400
#: Seconds beyond its days that an entry is kept: the dead letter of its attempt is younger than the claim.
SLACK = DAY


def available(method: Callable[..., Answer]) -> Callable[..., Answer]:
    """Turn whatever a store raises into the one error that callers handle."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Answer:
        try:
            return method(*args, **kwargs)
        except Exception as exc:
            if not is_the_store_s(exc):
                raise
            # SQLAlchemy goes on with the statement, in lines of its own.
            text = str(exc).partition("\n")[0]
            raise LedgerUnavailableError(f"{type(exc).__name__}: {text}") from exc

    return call


def is_the_store_s(exc: BaseException) -> bool:
    """Whether an error is the server's or the network's, and not that of what was to be stored."""
    names = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(exc).__mro__}
    if names & {"sqlalchemy.DataError", "sqlalchemy.StatementError"} and "sqlalchemy.DBAPIError" not in names:
        return False
    return isinstance(exc, OSError) or bool(names & {"sqlalchemy.SQLAlchemyError", "redis.RedisError"})


class SqlStore:
    """A table beside Celery's, reached through its engine: its sessions cost a task three times as much."""

    def __init__(self, app: WarrenCelery, days: int) -> None:
        self.app = app
        self.days = days

    @available
    def prepare(self) -> None:
        """Make the table where it is missing."""
        table().create(self._engine(), checkfirst=True)

    @available
    def read(self, key: str) -> str | None:
        """The entry, or None."""
        with self._engine().connect() as connection:
            found: str | None = connection.execute(statements().read, {"at_key": key}).scalar()
            return found

    @available
    def swap(self, key: str, old: str | None, new: str) -> bool:
        """Write an entry where the old one still stands."""
        from sqlalchemy.exc import IntegrityError

        values = {"entry": new, "at": time.time()}
        try:
            with self._engine().begin() as connection:
                if old is None:
                    connection.execute(statements().insert, {"key": key, **values})
                    return True
                found = {"at_key": key, "old_entry": old}
                return bool(connection.execute(statements().update, {**found, **values}).rowcount)
        except IntegrityError:
            return False

    @available
    def purge(self) -> int:
        """Forget entries that are older than the ledger's days; the number of them."""
        with self._engine().begin() as connection:
            oldest = time.time() - self.days * DAY - SLACK
            return int(connection.execute(statements().purge, {"oldest": oldest}).rowcount)

    def _engine(self) -> Engine:
        """Celery's: in a child it keeps its connections, in the main process, which forks, it keeps none."""
        backend = self.app.backend
        engine: Engine = backend.session_manager.get_engine(backend.url, **backend.engine_options)
        return engine


class RedisStore:
    """Keys of their own in Valkey or Redis, which forgets them by itself."""

    def __init__(self, app: WarrenCelery, days: int) -> None:
        self.app = app
        self.days = days

    def prepare(self) -> None:
        """Nothing to do: keys need no table."""

    @available
    def read(self, key: str) -> str | None:
        """The entry, or None."""
        found = self.app.backend.client.get(PREFIX + key)
        return found.decode() if isinstance(found, bytes) else found

    @available
    def swap(self, key: str, old: str | None, new: str) -> bool:
        """Write an entry where the old one still stands."""
        from redis.exceptions import WatchError

        client, name = self.app.backend.client, PREFIX + key
        if old is None:
            return bool(client.set(name, new, nx=True, ex=self.days * DAY + SLACK))
        with client.pipeline() as pipe:
            try:
                pipe.watch(name)
                if pipe.get(name) != old.encode():
                    return False
                pipe.multi()
                pipe.set(name, new, ex=self.days * DAY + SLACK)
                pipe.execute()
            except WatchError:
                return False
        return True

    def purge(self) -> int:
        """Nothing to do: the server lets old keys expire."""
        return 0


@functools.cache
def table() -> Table:
    """The table, described once, and only where SQL is used."""
    from sqlalchemy import Column, Float, MetaData, String, Table, Text

    return Table(
        TABLE,
        MetaData(),
        Column("key", String(600), primary_key=True),
        Column("entry", Text, nullable=False),
        Column("at", Float, nullable=False, index=True),
    )


class Statements(NamedTuple):
    """What is said to the table, built once."""

    read: Select[Any]
    insert: Insert
    update: Update
    purge: Delete


@functools.cache
def statements() -> Statements:
    """The statements; `at_key` and `old_entry` are what a row must hold, columns' own names what it is to hold."""
    from sqlalchemy import bindparam, delete, insert, select, update

    rows = table()
    here = rows.c.key == bindparam("at_key")
    return Statements(
        read=select(rows.c.entry).where(here),
        insert=insert(rows),
        update=update(rows).where(here, rows.c.entry == bindparam("old_entry")),
        purge=delete(rows).where(rows.c.at < bindparam("oldest")),
    )


def open_store(app: WarrenCelery, kind: str, days: int) -> SqlStore | RedisStore | None:
    """The store of the result backend's kind; None where it keeps nothing safely.

    Args:
        app: whose result backend is used.
        kind: `sql` or `redis`, see `queues.settings.ResultSettings`.
        days: how long an entry is kept.
    """
    made: dict[str, Callable[[WarrenCelery, int], SqlStore | RedisStore]] = {"sql": SqlStore, "redis": RedisStore}
    return made[kind](app, days) if kind in made else None
