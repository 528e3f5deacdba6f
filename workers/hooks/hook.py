"""One row of the register."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Hook:
    """A name inside a library that Warren relies on.

    Attributes:
        name: with its parameters where it is called: exactly these, or at least these where the last one is `...`.
        why: what Warren does with it, and for what; `added` says that the name is our own.
        read_by: the library's functions that use it, separated by spaces; where none does, an override is dead.
        made_in: the functions that make it, where it is an attribute of the instances alone.
        value: what it must be; of a class, the public names that it must have, separated by spaces.
        upstream: issues and pull requests that are about it.
        owner: the module, or `module:Class`, that defines it.
        used_in: the file of Warren's that uses it.

    A function without a module is one of the owner's.
    """

    name: str
    why: str
    read_by: str = ""
    made_in: str = ""
    value: object = None
    upstream: str = ""
    owner: str = ""
    used_in: str = ""

    @property
    def attribute(self) -> str:
        """The name without parameters."""
        return self.name.partition("(")[0]

    @property
    def signature(self) -> str:
        """The parameters with their parentheses; empty where it is not called."""
        return self.name.removeprefix(self.attribute)

    @property
    def path(self) -> str:
        """Where it is: `module:Class.name`."""
        return self.beside(self.attribute)

    @property
    def added(self) -> bool:
        """Whether it is our own, put onto an object of the library's, which must have none of that name."""
        return self.why.startswith("added")

    @property
    def readers(self) -> list[str]:
        """`read_by` with modules."""
        return [self.beside(name) for name in self.read_by.split()]

    @property
    def makers(self) -> list[str]:
        """`made_in` with modules."""
        return [self.beside(name) for name in self.made_in.split()]

    def beside(self, name: str) -> str:
        """The full path of a name that may be one of the owner's."""
        return name if ":" in name else f"{self.owner}{'.' if ':' in self.owner else ':'}{name}"


#: Hooks by their owner and the file that uses them.
Rows: TypeAlias = dict[tuple[str, str], tuple[Hook, ...]]


def each(*tables: Rows) -> Iterator[Hook]:
    """The hooks of all tables, each with its owner and the file that uses it."""
    for table in tables:
        for (owner, used_in), hooks in table.items():
            for hook in hooks:
                yield replace(hook, owner=owner, used_in=used_in)
