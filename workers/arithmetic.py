"""Exact arithmetic with bounds, so that no argument can make a worker compute or serialise without end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from queues.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: 14 000 bits are 4 215 decimal digits: Python refuses to write an int of more than 4 300 digits as JSON,
#: and would refuse only after the work is done.
MAX_BITS = 14_000

#: Longest list that ``xsum`` takes.
MAX_VALUES = 100_000


class InvalidArgument(PermanentError):
    """An operand or a result that cannot be computed with: ``not_a_number``, ``not_finite`` or ``too_large``."""


def add(x: float, y: float) -> int | float:
    """Return x + y: exact for two ints, IEEE 754 as soon as one is a float.

    Raises:
        InvalidArgument: An operand is no finite number, or an operand or the result is too large.
    """
    x, y = _number(x, "x"), _number(y, "y")
    try:
        return _bounded(x + y, "The sum")
    except OverflowError:
        raise _too_large("An int that meets a float") from None


def multiply(x: float, y: float) -> int | float:
    """Return x · y: exact for two ints, IEEE 754 as soon as one is a float.

    Raises:
        InvalidArgument: An operand is no finite number, or an operand or the result is too large.
    """
    x, y = _number(x, "x"), _number(y, "y")
    # A product has at least this many bits, so what is hopeless is refused before it is computed.
    if isinstance(x, int) and isinstance(y, int) and x and y and x.bit_length() + y.bit_length() - 1 > MAX_BITS:
        raise _too_large("The product")
    try:
        return _bounded(x * y, "The product")
    except OverflowError:
        raise _too_large("An int that meets a float") from None


def xsum(values: Sequence[float]) -> int | float:
    """Return the sum: exact for ints, correctly rounded (``math.fsum``) as soon as one value is a float.

    Raises:
        InvalidArgument: Not a list, too many values, a value that is no finite number, or a sum that is too large.
    """
    if not isinstance(values, (list, tuple)):
        raise InvalidArgument("not_a_number", f"values must be a list of numbers, not {type(values).__name__}.")
    if len(values) > MAX_VALUES:
        raise InvalidArgument(
            "too_large", f"{len(values)} values are more than {MAX_VALUES}: send several lists and sum the sums."
        )
    numbers = [_number(value, f"values[{index}]") for index, value in enumerate(values)]
    if all(isinstance(number, int) for number in numbers):
        return _bounded(sum(numbers), "The sum")
    try:
        return _bounded(math.fsum(numbers), "The sum")
    except OverflowError:
        raise _too_large("The sum, or an int that meets a float,") from None


def _number(value: object, name: str) -> int | float:
    # bool is an int to Python, yet True + True is never what the caller of a JSON task meant.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument("not_a_number", f"{name} must be an int or a float, not {type(value).__name__}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgument("not_finite", f"{name} is {value}: JSON has no such number, send a finite one.")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _too_large(name)
    return value


def _bounded(result: float, name: str) -> int | float:
    too_large = result.bit_length() > MAX_BITS if isinstance(result, int) else math.isinf(result)
    if too_large:
        raise _too_large(name)
    return result


def _too_large(name: str) -> InvalidArgument:
    return InvalidArgument(
        "too_large", f"{name} is too large: send ints of at most {MAX_BITS} bits and floats below 1.8e308."
    )
