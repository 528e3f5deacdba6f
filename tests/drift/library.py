"""Whether a hook of the register is in the installed library as the register says; told by its classes and bytecode."""

from __future__ import annotations

import dis
import importlib
import inspect
from functools import cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workers.hooks import Hook

#: Instructions that set an attribute or global, or name one: as a keyword, or as the key of a class' dictionary.
SETTING = ("STORE_ATTR", "STORE_GLOBAL", "STORE_NAME", "LOAD_CONST", "KW_NAMES", "RETURN_CONST")


def problem(hook: Hook) -> str | None:
    """What is not as the register says, with the remedy; None where all is."""
    try:
        flaw = taken(hook) if hook.added else missing(hook) or unused(hook) or different(hook)
    except Moved as exc:
        flaw = str(exc)
    if flaw is None:
        return None
    return (
        f"{flaw}: {hook.used_in} relies on {hook.path} ({hook.why}). Read what the installed release does instead, "
        "change that file and its row in workers/hooks/, or stay below that release in pyproject.toml"
    )


class Moved(Exception):
    """A name of the register is not where it was."""


def taken(hook: Hook) -> str | None:
    """Whether a name that is put onto the library's objects is one of the library's own."""
    codes = [code for value in vars(find(hook.owner)).values() if (code := getattr(value, "__code__", None))]
    if hook.attribute in {*vars(find(hook.owner)), *(name for code in codes for name in code.co_names)}:
        return f"{hook.owner} has a {hook.attribute} of its own"
    return None


def missing(hook: Hook) -> str | None:
    """Whether the name is gone."""
    owner = find(hook.owner)
    if not hook.made_in:
        within(owner, hook.attribute, hook.owner)
        return None
    for maker in hook.makers:
        if hook.attribute not in made(code_of(find(maker), maker)):
            return f"{maker} makes no {hook.attribute}"
    return None


def unused(hook: Hook) -> str | None:
    """Whether the library itself has ceased to use the name: whatever Warren puts there is dead."""
    for reader in hook.readers:
        if hook.attribute not in code_of(find(reader), reader).co_names:
            return f"{reader} does not use {hook.attribute}"
    return None


def different(hook: Hook) -> str | None:
    """Whether parameters or value have changed."""
    if hook.signature:
        found = signature(find(hook.path))
        if not agrees(hook.signature, found):
            return f"{hook.path} takes {found}, not {hook.signature}"
    if hook.value is not None:
        value = find(hook.path)
        if isinstance(value, type) and isinstance(hook.value, str):
            names = {name for name in vars(value) if not name.startswith("__")}
            if names != set(hook.value.split()):
                return f"{hook.path} differs in {', '.join(sorted(names ^ set(hook.value.split())))}"
        elif listed(value) != hook.value:
            return f"{hook.path} is {value!r}, not {hook.value!r}"
    return None


def listed(value: Any) -> Any:
    """A value as the register has it."""
    return tuple(value) if isinstance(value, list) else value


@cache
def find(path: str) -> Any:
    """What stands at `module:Class.name`: an object, or the code of what a function makes.

    Raises:
        Moved: nothing does.
    """
    module, _, names = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as exc:
        raise Moved(f"{module} cannot be imported ({type(exc).__name__}: {exc})") from exc
    for name in filter(None, names.split(".")):
        found = within(found, name, path)
    return found


def within(found: Any, name: str, path: str) -> Any:
    """A name of a module's, a class' own, a function's code, or an object's.

    Raises:
        Moved: there is none.
    """
    if isinstance(found, ModuleType | type):
        if name in vars(found):
            return vars(found)[name]
    elif isinstance(found, CodeType | FunctionType | property) or hasattr(found, "__wrapped__"):
        code = code_of(found, path)
        for inner in code.co_consts:
            if isinstance(inner, CodeType) and inner.co_name == name:
                return inner
        if name in made(code):
            return code
    elif hasattr(found, name):
        return getattr(found, name)
    raise Moved(f"there is no {name} in {path}")


def code_of(found: Any, path: str) -> CodeType:
    """The code of a function, a method or a property of whatever kind.

    Raises:
        Moved: it has none.
    """
    for attribute in ("__func__", "fget", "func", "callback"):
        found = getattr(found, attribute, None) or found
    code = found if isinstance(found, CodeType) else getattr(inspect.unwrap(found), "__code__", None)
    if code is None:
        raise Moved(f"{path} is no function")
    return code


def made(code: CodeType) -> set[str]:
    """The attributes and globals that a function's own code sets, and its texts."""
    setting = [one for one in dis.get_instructions(code) if one.opname in SETTING]
    return {name for one in setting for name in texts(one.argval)}


def texts(value: Any) -> Iterator[str]:
    """The texts in a constant."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | frozenset):
        for item in value:
            yield from texts(item)


def signature(found: Any) -> str:
    """The parameters as text; a default that is no plain value is `...`."""
    if isinstance(found, CodeType):
        found = FunctionType(found, {}, None, None, tuple(CellType() for _ in found.co_freevars))
    parameters = []
    for parameter in inspect.signature(getattr(found, "__func__", found)).parameters.values():
        plain = isinstance(parameter.default, int | float | str | tuple | None) or parameter.default is parameter.empty
        default = parameter.default if plain else Rest()
        parameters.append(parameter.replace(annotation=parameter.empty, default=default))
    return str(inspect.Signature(parameters))


class Rest:
    """Stands for any default."""

    def __repr__(self) -> str:
        return "..."


def agrees(wanted: str, found: str) -> bool:
    """Whether the parameters found are those wanted; where the last wanted is `...`, others may stand between them."""
    if not wanted.endswith(", ...)"):
        return wanted == found
    names = [name.partition("=")[0].strip("()* ") for name in found.split(", ")]
    return all(name.strip("(") in names for name in wanted.removesuffix(", ...)").split(", "))
