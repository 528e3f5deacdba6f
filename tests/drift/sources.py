"""What Warren's own sources reach for inside a library; told by their syntax and by the library's classes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LIBRARIES = frozenset(("celery", "kombu", "billiard", "amqp", "vine", "flower", "supervisor", "prometheus_client"))
#: What they document as made to be derived from: steps and exceptions.
DOCUMENTED = ("celery.bootsteps", "celery.exceptions", "kombu.exceptions")
#: Attributes of a task that Celery documents.
OPTIONS = frozenset(("rate_limit", "soft_time_limit", "time_limit"))
#: Private names, and assigned ones, of the standard library.
STANDARD = frozenset(("_exit", "_replace", "__excepthook__", "minimum_version"))


class _Python(Exception):
    """Has the names that Python itself gives to classes, functions and exceptions."""

    __slots__ = ()
    __file__ = __name__ = __self__ = __code__ = __get__ = __getitem__ = ""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Reach:
    """A name of a library's that a file uses."""

    file: str
    line: int
    name: str
    how: str


class Source:
    """A file of ours."""

    def __init__(self, path: Path, root: Path) -> None:
        self.file = path.relative_to(root).as_posix()
        self.module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.classes = dict(named_classes(self.tree))
        #: Names that are not a library's: this file's, and those of the files that it imports.
        self.known: frozenset[str] = frozenset()

    @cached_property
    def imports(self) -> dict[str, str]:
        """What each imported name stands for."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    found |= {alias.asname: alias.name} if alias.asname else {top: top}
            elif isinstance(node, ast.ImportFrom):
                found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        return found

    @cached_property
    def knows_a_library(self) -> bool:
        """Whether it imports one."""
        return any(of_library(name) for name in self.imports.values())

    @cached_property
    def own(self) -> frozenset[str]:
        """The names that it defines: globals, attributes and methods, and what it puts on objects."""
        bodies = [self.tree.body, *(node.body for node in self.classes.values())]
        found = {name for body in bodies for item in body for name in defined(item)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
            elif (name := attribute_of_call(node)) and not is_private(name):
                found.add(name)
        return frozenset(found)


class Project:
    """All files of ours."""

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
        sources = [Source(path, root) for path in paths]
        self.sources = {source.module: source for source in sources}
        for source in sources:
            named = {part for name in source.imports.values() for part in (name, name.rpartition(".")[0])}
            own = [self.sources[name].own for name in named if name in self.sources]
            source.known = frozenset().union(STANDARD, OPTIONS, source.own, *own)

    def reaches(self) -> set[Reach]:
        """Everything that is reached for."""
        found = {reach for source in self.sources.values() for reach in (*imported(source), *foreign(source))}
        extended: dict[tuple[str, str], set[type]] = {}
        for source in self.sources.values():
            for name in source.classes:
                ours, theirs = self.bases(source, name)
                for one in ours:  # a mixin extends what is beside it
                    extended.setdefault(one, set()).update(theirs)
        for (module, name), libraries in extended.items():
            found |= set(inherited(self.sources[module], name, libraries)) if libraries else set()
        return found

    def bases(self, source: Source, name: str) -> tuple[list[tuple[str, str]], set[type]]:
        """A class and those of ours that it extends; and those of a library."""
        ours: list[tuple[str, str]] = [(source.module, name)]
        theirs: set[type] = set()
        for base in source.classes[name].bases:
            found = self.resolve(source, ast.unparse(base))
            if isinstance(found, tuple):
                more, of_a_library = self.bases(*found)
                ours += more
                theirs |= of_a_library
            elif found is not None and not found.__module__.startswith(DOCUMENTED):
                theirs.add(found)
        return ours, theirs

    def resolve(self, source: Source, name: str) -> tuple[Source, str] | type | None:
        """The class that a name stands for: ours or a library's; None for any other."""
        if name in source.classes:
            return source, name
        first, dot, rest = name.partition(".")
        full = source.imports.get(first, "") + dot + rest
        if of_library(full):
            found = pkgutil.resolve_name(full)
            return found if isinstance(found, type) else None
        module, _, name = full.rpartition(".")
        other = self.sources.get(module)
        return (other, name) if other is not None and name in other.classes else None


def imported(source: Source) -> Iterator[Reach]:
    """Private names, and names of private modules, that are imported from a library."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and of_library(node.module or ""):
            for alias in node.names:
                if "._" in f".{node.module}.{alias.name}":
                    yield Reach(source.file, node.lineno, alias.name, "imports")


def foreign(source: Source) -> Iterator[Reach]:
    """Private names of objects that are not `self`, and whatever is put onto them."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and not is_self(node.value):
            stored = source.knows_a_library and not isinstance(node.ctx, ast.Load) and not is_configuration(node.value)
            touched = is_private(node.attr) or (stored and not hasattr(_Python, node.attr))
            if touched and node.attr not in source.known:
                yield Reach(source.file, node.lineno, node.attr, "replaces" if stored else "uses")
        elif isinstance(node, ast.Call | ast.Subscript):
            name = attribute_of_call(node)
            if name is not None and is_private(name) and name not in source.known:
                yield Reach(source.file, node.lineno, name, "uses")
            name = key_of_attributes(node)
            if name is not None and source.knows_a_library:
                yield Reach(source.file, node.lineno, name, "uses")
            name = source.imports.get(listed(node) or "", "")
            if of_library(name):
                yield Reach(source.file, node.lineno, name.rpartition(".")[2], "lists")


def inherited(source: Source, name: str, libraries: set[type]) -> Iterator[Reach]:
    """Names of a library's classes that a class of ours overrides, assigns, or uses if private."""
    node = source.classes[name]
    theirs = {name for library in libraries for name in names_of(library)}
    for item in node.body:
        for name in defined(item):
            if name in theirs and not hasattr(_Python, name):
                yield Reach(source.file, item.lineno, name, "overrides")
    nested = {id(inner) for item in node.body if isinstance(item, ast.ClassDef) for inner in ast.walk(item)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and is_self(inner.value) and id(inner) not in nested:
            touched = is_private(inner.attr) or isinstance(inner.ctx, ast.Store)
            if touched and inner.attr in theirs:
                yield Reach(source.file, inner.lineno, inner.attr, "uses")


def names_of(library: type) -> set[str]:
    """The names of a class and of those of a library that it extends, with those that their methods' code uses."""
    found: set[str] = set()
    for base in library.__mro__:
        if not of_library(base.__module__):
            continue
        found.update(vars(base))
        for value in vars(base).values():
            function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            code = getattr(inspect.unwrap(function), "__code__", None)
            found.update(code.co_names if code else ())
    return found


def named_classes(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    """All classes with their qualified names."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, node
            yield from named_classes(node, f"{prefix}{node.name}.")


def defined(item: ast.stmt) -> list[str]:
    """The names that a statement gives to the module or class whose body it stands in."""
    if isinstance(item, ast.FunctionDef | ast.ClassDef):
        return [item.name]
    targets = item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def attribute_of_call(node: ast.AST) -> str | None:
    """The name in `getattr(something, "name")` and the like."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
        return text_of(node.args[1]) if len(node.args) > 1 else None
    return None


def key_of_attributes(node: ast.Call | ast.Subscript) -> str | None:
    """The name in `something.__dict__["name"]`, or in a method's call on such a dictionary."""
    if isinstance(node, ast.Subscript):
        holder, key = node.value, node.slice
    elif isinstance(node.func, ast.Attribute) and node.args:
        holder, key = node.func.value, node.args[0]
    else:
        return None
    return text_of(key) if isinstance(holder, ast.Attribute) and holder.attr == "__dict__" else None


def listed(node: ast.Call | ast.Subscript) -> str | None:
    """The name in `vars(name)`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "vars" and node.args:
        return ast.unparse(node.args[0])
    return None


def text_of(node: ast.AST) -> str | None:
    """A constant text."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def of_library(name: str) -> bool:
    """Whether a module's full name, or one within it, is a library's."""
    return name.partition(".")[0] in LIBRARIES


def is_self(node: ast.AST) -> bool:
    """Whether it is the instance or class that a method belongs to."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_private(name: str) -> bool:
    """Whether a name begins with an underscore, and is not one that Python itself gives."""
    return name.startswith("_") and not hasattr(_Python, name)


def is_configuration(node: ast.AST) -> bool:
    """Whether it is Celery's configuration, whose names are documented."""
    return (isinstance(node, ast.Name) and node.id == "conf") or (
        isinstance(node, ast.Attribute) and node.attr == "conf"
    )
