"""Set-up that fails ends the process with one sentence."""

from __future__ import annotations

import asyncio

import pytest
from celery.utils.dispatch import Signal

from workers.startup import FAILED, ending, stop, strictly


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("API_KEY"), "KeyError: 'API_KEY'"),
        (Odd(), "Odd: <its text cannot be had: RuntimeError>"),
        (BaseException("neither"), "BaseException: neither"),
        (asyncio.CancelledError("at import"), "CancelledError: at import"),
        (SystemExit(0), "SystemExit: 0"),
        (SystemExit(FAILED), "SystemExit: 2"),
        (ValueError("two\n\tlines"), "ValueError: two lines"),
        (SyntaxError(), "SyntaxError: None"),
        (ImportError("no module"), "ImportError: no module; install it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_is_raised_ends_the_process_with_a_sentence(
    capsys: pytest.CaptureFixture[str], error: BaseException, told: str
) -> None:
    with pytest.raises(SystemExit) as ended, ending("the module cannot be imported", "install it"):
        raise error
    assert ended.value.code == FAILED
    assert capsys.readouterr().err.startswith(f"the module cannot be imported: {told}")


def test_a_sentence_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), ending("outer"), ending("inner"):
        stop("this is missing: add it")
    assert capsys.readouterr().err == "this is missing: add it\n"


def test_ctrl_c_is_no_failure() -> None:
    with pytest.raises(KeyboardInterrupt), ending("it cannot be set up"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit("left"), LookupError("no licence")], ids=repr)
def test_whatever_a_receiver_raises_ends_the_process(capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    signal = Signal(name="set_up", use_caching=False)
    strictly(signal)

    @signal.connect(weak=False)
    def receiver(**_: object) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        signal.send(sender=None)
    assert ended.value.code == FAILED
    assert f"{type(error).__name__}: {error}" in capsys.readouterr().err
