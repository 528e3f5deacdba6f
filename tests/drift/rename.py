"""Does the drift test notice? Every hook of the register is moved, one at a time, in libraries of a process of its own.

`python -m tests.drift.rename [TEXT]`, of the hooks whose path holds the text. A hook is renamed where it is defined and
used, as a release would do it; left in place while one of its readers uses it no more; given another parameter; given
another value. Each time the drift test must fail with that hook's sentence. Nothing is written: the changed modules are
given to the import system as text.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import io
import multiprocessing
import os
import re
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.drift.test_hooks import identity
from workers.hooks import HOOKS, Hook

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

TEST = Path(__file__).with_name("test_hooks.py")
#: What a moved name ends with.
MOVED = "_moved"

Functions = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Move:
    """One change, and the modules' text with it."""

    hook: Hook
    kind: str
    sources: dict[str, str]


def moves(hook: Hook) -> Iterator[Move]:
    """All that may happen to a hook."""
    module = hook.path.partition(":")[0]
    if hook.added:
        yield Move(hook, "taken", {module: given(text_of(module), hook)})
        return
    if not is_object(hook):
        yield Move(hook, "renamed", everywhere(hook))
    for reader in hook.readers:
        theirs = reader.partition(":")[0]
        yield Move(hook, f"unused by {reader}", {theirs: without(text_of(theirs), reader, hook.attribute)})
    if hook.signature:
        yield Move(hook, "other parameters", {module: reparametrised(text_of(module), hook)})
    if hook.value is not None:
        yield Move(hook, "other value", {module: revalued(text_of(module), hook)})


def is_object(hook: Hook) -> bool:
    """Whether its owner is neither a module, a class nor a function: its attributes are not the library's to rename."""
    module, _, names = hook.owner.partition(":")
    return bool(names) and isinstance(node_of(ast.parse(text_of(module)), names), ast.Assign)


@cache
def place_of(module: str) -> Path:
    """The file of a library's module, without an import of it."""
    package, *names = module.split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None, module
    assert spec.origin is not None, module
    path = Path(spec.origin).parent.joinpath(*names)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def text_of(module: str) -> str:
    """The source of a library's module."""
    return place_of(module).read_text(encoding="utf-8")


def renamed(text: str, name: str) -> str:
    """A text with another name; what is imported from elsewhere keeps its own there."""
    text = re.sub(rf"\b{re.escape(name)}\b", name + MOVED, text)
    return re.sub(rf"^import {re.escape(name)}{MOVED}$", f"import {name} as {name}{MOVED}", text, flags=re.MULTILINE)


def node_of(tree: ast.AST, names: str) -> Any:
    """Where a name is defined: a function, a class, or an assignment."""
    node: Any = tree
    for name in names.split("."):
        found = [child for child in ast.walk(node) if child is not node and defines(child, name)]
        assert found, f"{names}: no {name}"
        node = next((one for one in found if not isinstance(one, ast.Assign)), found[-1])
    return node


def defines(node: ast.AST, name: str) -> bool:
    """Whether it is the definition of a name."""
    if isinstance(node, Functions | ast.ClassDef):
        return node.name == name
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == name for target in node.targets
    )


def everywhere(hook: Hook) -> dict[str, str]:
    """The modules in which a hook's owner, makers and readers have another name for it."""
    sources: dict[str, str] = {}
    for path in (hook.owner, *hook.makers, *hook.readers):
        module = path.partition(":")[0]
        sources[module] = without(sources.get(module) or text_of(module), path, hook.attribute)
    return sources


def without(text: str, path: str, name: str) -> str:
    """A module in which one function, class or the whole uses another name."""
    names = path.partition(":")[2]
    if not names:
        return renamed(text, name)
    node = node_of(ast.parse(text), names)
    lines = text.splitlines(keepends=True)
    first = node.lineno - isinstance(node, ast.Assign)
    changed = renamed("".join(lines[first : node.end_lineno]), name)
    return "".join(lines[:first]) + changed + "".join(lines[node.end_lineno :])


def reparametrised(text: str, hook: Hook) -> str:
    """A module in which a function takes one parameter more, or one of those that are needed has another name."""
    tree = ast.parse(text)
    node = node_of(tree, hook.path.partition(":")[2])
    if isinstance(node, ast.ClassDef):
        node = node_of(node, "__init__")
    if isinstance(node, ast.Assign):
        node.value = expression(f"lambda new{MOVED}: None")
    elif hook.signature.endswith(", ...)"):
        last = hook.signature.removesuffix(", ...)").rpartition(" ")[2].strip("(*")
        (found,) = [one for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if one.arg == last]
        found.arg += MOVED
    else:
        node.args.kwonlyargs.append(ast.arg(f"new{MOVED}"))
        node.args.kw_defaults.append(ast.Constant(None))
    return ast.unparse(ast.fix_missing_locations(tree))


def revalued(text: str, hook: Hook) -> str:
    """A module in which a constant has another value."""
    tree = ast.parse(text)
    node = node_of(tree, (hook.owner if is_object(hook) else hook.path).partition(":")[2])
    if isinstance(node, ast.ClassDef):
        node.body += ast.parse(f"new{MOVED} = None").body
    elif hook.attribute == "_fields":
        node.value = expression("namedtuple('Moved', 'one two')")
    elif is_object(hook):
        node.value = expression(f"__import__('logging').getLogger('{MOVED}')")
    else:
        more = {int: "1", str: repr(MOVED), tuple: "type(old)([None])"}[type(hook.value)]
        node.value = expression(f"(lambda old: old + {more})({ast.unparse(node.value)})")
    return ast.unparse(ast.fix_missing_locations(tree))


def given(text: str, hook: Hook) -> str:
    """A module in which the owner has a name that was free."""
    tree = ast.parse(text)
    node_of(tree, hook.owner.partition(":")[2]).body += ast.parse(f"{hook.attribute} = None").body
    return ast.unparse(tree)


def expression(text: str) -> ast.expr:
    """An expression's syntax."""
    return ast.parse(text, mode="eval").body


class Given:
    """Imports modules from the given texts."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.sources:
            return None
        place = place_of(name)
        spec = ModuleSpec(name, self, origin=str(place), is_package=place.name == "__init__.py")  # type: ignore[arg-type]
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(str(place.parent))
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """The usual one."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        exec(compile(self.sources[name], str(place_of(name)), "exec"), module.__dict__)


def notices(move: Move) -> str:
    """The drift test's sentence about the hook; empty where there is none. Runs in a process of its own."""
    sys.meta_path.insert(0, Given(move.sources))
    one = f"{TEST}::test_a_hook_is_in_the_installed_library[{identity(move.hook)}]"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--noconftest", "--tb=short", one])
    sentence = re.search(rf"^(.*relies on {re.escape(move.hook.path)} .*)$", said.getvalue(), re.MULTILINE)
    return sentence[1] if sentence else ""


def main() -> int:
    """Move everything, and count."""
    chosen = [hook for hook in HOOKS if not sys.argv[1:] or sys.argv[1] in hook.path]
    todo = [move for hook in chosen for move in moves(hook)]
    for name in ("sqlalchemy.orm", "redis", "tornado.web"):  # what libraries import, once for all
        importlib.import_module(name)
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        said = pool.map(notices, todo, chunksize=1)
    missed = [move for move, sentence in zip(todo, said, strict=True) if not sentence]
    for move in missed:
        print(f"NOT NOTICED: {identity(move.hook)} {move.kind}")
    for kind in ("renamed", "unused", "other parameters", "other value", "taken"):
        asked = sum(move.kind.startswith(kind) for move in todo)
        print(f"{kind}: {asked - sum(move.kind.startswith(kind) for move in missed)} of {asked} noticed")
    print(f"by a module that cannot be imported any more: {sum('cannot be imported' in sentence for sentence in said)}")
    noticed = {identity(move.hook) for move in todo} - {identity(move.hook) for move in missed}
    print(f"hooks: {len(noticed)} of {len(chosen)} noticed")
    return len(noticed) < len(chosen)


if __name__ == "__main__":
    raise SystemExit(main())
