"""What Warren's own sources reach for inside a library; told by their syntax and by the library's classes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LIBRARIES = frozenset(("celery", "kombu", "billiard", "amqp", "vine", "flower", "supervisor", "prometheus_client"))
#: What they document as made to be derived from: steps and exceptions.
DOCUMENTED = ("celery.bootsteps", "celery.exceptions", "kombu.exceptions")
#: Python's own.
PYTHON = frozenset(("_replace", "_value", "__self__", "minimum_version"))
#: Attributes of a task that Celery documents.
OPTIONS = frozenset(("rate_limit", "soft_time_limit", "time_limit"))


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
        self.classes: dict[str, ast.ClassDef] = dict(named_classes(self.tree))
        #: Names that are ours, or Python's.
        self.known: set[str] = set()

    @cached_property
    def imports(self) -> dict[str, str]:
        """What each imported name stands for."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {
                    a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                    for a in node.names
                }
            elif isinstance(node, ast.ImportFrom):
                found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        return found

    @cached_property
    def knows_a_library(self) -> bool:
        """Whether it imports one."""
        return any(name.partition(".")[0] in LIBRARIES for name in self.imports.values())

    @cached_property
    def own(self) -> set[str]:
        """The names that it defines: globals, attributes and methods of classes, and attributes that it puts on objects."""
        bodies = [self.tree, *self.classes.values()]
        found = {name for body in bodies for item in body.body for name in defined(item)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 3:
                found |= {name.value for name in node.args[1:2] if isinstance(name, ast.Constant)}
        return found


def named_classes(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    """All classes with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, node
            yield from named_classes(node, f"{prefix}{node.name}.")


def is_self(node: ast.AST) -> bool:
    """Whether it is the instance or class that a method belongs to."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


class Project:
    """All files of ours."""

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
        self.sources = [Source(path, root) for path in paths]
        self.by_module = {source.module: source for source in self.sources}
        for source in self.sources:
            imported_ones = {
                self.by_module.get(name.removesuffix(tail))
                for name in source.imports.values()
                for tail in ("", "." + name.rpartition(".")[2])
            }
            source.known = PYTHON | OPTIONS | source.own
            for one in imported_ones - {None}:
                source.known |= one.own
        #: For each class of ours, the library's classes that it or one derived from it extends.
        self.extended: dict[tuple[str, str], set[type]] = {}
        for source in self.sources:
            for name in source.classes:
                ours, theirs = self.bases(source, name)
                for one in ours:
                    self.extended.setdefault(one, set()).update(theirs)

    def bases(self, source: Source, name: str) -> tuple[list[tuple[str, str]], set[type]]:
        """A class and those of ours that it extends; and those of a library."""
        ours, theirs = [(source.module, name)], set()
        for base in source.classes[name].bases:
            found = self.resolve(source, ast.unparse(base))
            if isinstance(found, tuple):
                more, of_library = self.bases(*found)
                ours += more
                theirs |= of_library
            elif found is not None and not found.__module__.startswith(DOCUMENTED):
                theirs.add(found)
        return ours, theirs

    def resolve(self, source: Source, name: str) -> tuple[Source, str] | type | None:
        """The class that a name stands for: ours, a library's, or one of no account."""
        if name in source.classes:
            return source, name
        first, dot, rest = name.partition(".")
        full = source.imports.get(first, "") + dot + rest
        if full.partition(".")[0] in LIBRARIES:
            found = pkgutil.resolve_name(full)
            return found if isinstance(found, type) else None
        module, _, name = full.rpartition(".")
        other = self.by_module.get(module)
        return (other, name) if other is not None and name in other.classes else None

    def reaches(self) -> set[Reach]:
        """Everything that is reached for."""
        found = {reach for source in self.sources for reach in (*imported(source), *foreign(source))}
        for (module, name), libraries in self.extended.items():
            if libraries:
                source = self.by_module[module]
                found |= set(inherited(source, source.classes[name], libraries))
        return found


def imported(source: Source) -> Iterator[Reach]:
    """Private names, and names of private modules, that are imported from a library."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            for alias in node.names:
                if f".{node.module}.{alias.name}".count("._"):
                    yield Reach(source.file, node.lineno, alias.name, "imports")


def foreign(source: Source) -> Iterator[Reach]:
    """Private names of other objects, and whatever is put onto objects that are not ours."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and not is_self(node.value):
            stored = not isinstance(node.ctx, ast.Load) and source.knows_a_library and not is_configuration(node.value)
            if (stored or is_private(node.attr)) and node.attr not in source.known:
                yield Reach(source.file, node.lineno, node.attr, "replaces" if stored else "uses")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            name = node.args[-1] if node.func.id in ("getattr", "hasattr", "setattr", "delattr") else None
            name = node.args[1] if name is not None and len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and str(name.value) not in source.known:
                yield Reach(source.file, node.lineno, str(name.value), "uses")
            if node.func.id == "vars" and isinstance(node.args[0], ast.Name):
                whole = source.imports.get(node.args[0].id, "")
                if whole.partition(".")[0] in LIBRARIES:
                    yield Reach(source.file, node.lineno, whole.rpartition(".")[2], "lists")
        name = text_key(node)
        if name is not None and source.knows_a_library:
            yield Reach(source.file, node.lineno, name, "uses")  # type: ignore[attr-defined]


def text_key(node: ast.AST) -> str | None:
    """The name in `something.__dict__["name"]`, or in a method's call on such a dictionary."""
    if isinstance(node, ast.Subscript):
        holder, key = node.value, node.slice
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        holder, key = node.func.value, node.args[0]
    else:
        return None
    inside = isinstance(holder, ast.Attribute) and holder.attr == "__dict__"
    return str(key.value) if inside and isinstance(key, ast.Constant) else None


def is_private(name: str) -> bool:
    """Whether a name begins with an underscore, and is none that Python itself gives."""
    return name.startswith("_") and not hasattr(type(int.__add__), name) and not hasattr(FunctionNames, name)


class FunctionNames(Exception):
    """Has the names that Python gives to classes and exceptions."""

    __slots__ = ()
    __file__ = ""


def is_configuration(node: ast.AST) -> bool:
    """Whether it is Celery's configuration, whose names are documented."""
    return (isinstance(node, ast.Name) and node.id == "conf") or (
        isinstance(node, ast.Attribute) and node.attr == "conf"
    )


def inherited(source: Source, node: ast.ClassDef, libraries: set[type]) -> Iterator[Reach]:
    """Names of the library's classes that a class of ours overrides, uses if private, or assigns."""
    theirs = {name for library in libraries for name in names_of(library)}
    for item in node.body:
        for name in defined(item):
            if name in theirs and not (name.startswith("__") and hasattr(FunctionNames, name)):
                yield Reach(source.file, item.lineno, name, "overrides")
    nested = {id(inner) for item in node.body if isinstance(item, ast.ClassDef) for inner in ast.walk(item)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and is_self(inner.value) and id(inner) not in nested:
            touched = is_private(inner.attr) or isinstance(inner.ctx, ast.Store)
            if touched and inner.attr in theirs:
                yield Reach(source.file, inner.lineno, inner.attr, "uses")


def defined(item: ast.stmt) -> list[str]:
    """The names that a statement of a class' body gives it."""
    if isinstance(item, ast.FunctionDef | ast.ClassDef):
        return [item.name]
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
        return [item.target.id]
    if isinstance(item, ast.Assign):
        return [target.id for target in item.targets if isinstance(target, ast.Name)]
    return []


def names_of(library: type) -> set[str]:
    """The names of a class and of those that it extends, with what their methods' code uses."""
    found = set(dir(library))
    for base in library.__mro__:
        if base.__module__.partition(".")[0] in LIBRARIES:
            for value in vars(base).values():
                function: Any = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
                code = getattr(inspect.unwrap(function), "__code__", None)
                if code is not None:
                    found.update(code.co_names)
    return found
