"""Bounds and exactness of the arithmetic."""

from __future__ import annotations

import json
import pickle
from enum import IntEnum
from typing import Any

import pytest

from queues.errors import PermanentError, TransientError, WarrenError
from workers.arithmetic import MAX_BITS, MAX_VALUES, InvalidArgument, add, multiply, xsum

LARGEST = 2**MAX_BITS - 1


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (add(4, 4), 8),
        (add(2**53, 1), 9007199254740993),
        (add(0.1, 0.2), 0.30000000000000004),
        (add(LARGEST, 0), LARGEST),
        (add(LARGEST, -LARGEST), 0),
        (multiply(8, 2), 16),
        (multiply(2.5, 4), 10.0),
        (multiply(LARGEST, 1), LARGEST),
        (multiply(0, LARGEST), 0),
        (multiply(-(2**6999), 2**7000), -(2**13999)),
        (xsum([]), 0),
        (xsum((1, 2, 3)), 6),
        (xsum([0.1] * 10), 1.0),
        (xsum([2**53, 1]), 9007199254740993),
        (xsum([1, 0.5]), 1.5),
        (add(Level.HIGH, 1), 4),
    ],
)
def test_value(result: float, expected: float) -> None:
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("code", "function", "arguments"),
    [
        ("not_a_number", add, ("1", 2)),
        ("not_a_number", add, (1, None)),
        ("not_a_number", multiply, (True, 2)),
        ("not_a_number", multiply, (1j, 2)),
        ("not_a_number", xsum, ("123",)),
        ("not_a_number", xsum, ({1: 2},)),
        ("not_a_number", xsum, ([1, [2]],)),
        ("not_finite", add, (float("nan"), 1)),
        ("not_finite", multiply, (float("inf"), 0)),
        ("not_finite", xsum, ([1, float("-inf")],)),
        ("too_large", add, (LARGEST + 1, 0)),
        ("too_large", add, (LARGEST, 1)),
        ("too_large", add, (2**2000, 0.5)),
        ("too_large", add, (1e308, 1e308)),
        ("too_large", multiply, (2**7000, 2**7000)),
        ("too_large", multiply, (LARGEST, LARGEST)),
        ("too_large", multiply, (2**2000, 0.5)),
        ("too_large", multiply, (1e200, 1e200)),
        ("too_large", xsum, ([LARGEST, 1],)),
        ("too_large", xsum, ([2**2000, 0.5],)),
        ("too_large", xsum, ([1e308, 1e308],)),
        ("too_large", xsum, ([0] * (MAX_VALUES + 1),)),
    ],
)
def test_refusal(code: str, function: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        function(*arguments)
    assert caught.value.code == code
    assert len(str(caught.value)) < 200


def test_largest_result_fits_in_json() -> None:
    assert json.loads(json.dumps(multiply(LARGEST, 1))) == LARGEST


@pytest.mark.parametrize(
    "error",
    [
        PermanentError("gone", "Put it back."),
        TransientError("busy", "Wait.", 2.5),
        InvalidArgument("too_large", "Less."),
    ],
)
def test_errors_survive_pickle_and_celerys_json(error: PermanentError | TransientError) -> None:
    through_json = type(error)(*json.loads(json.dumps(error.args)))
    for copy in (pickle.loads(pickle.dumps(error)), through_json):
        assert isinstance(copy, WarrenError)
        assert type(copy) is type(error)
        assert (copy.args, copy.code, str(copy)) == (error.args, error.code, error.message)
        assert getattr(copy, "retry_after", None) == getattr(error, "retry_after", None)
