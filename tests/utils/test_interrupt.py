"""Interruptions wait until a block ends."""

import os
import signal
from collections.abc import Iterator

import pytest

from optuna_stitch.utils.interrupt import (
    check_interrupt,
    check_lost_interrupt,
    heeding_interrupts,
    uninterrupted,
)
from tests.helpers.interrupts import NUMBERS, interruptible, lose_interrupt


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    with interruptible():
        yield


def _interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_it_comes_after_the_outermost_block(number: signal.Signals) -> None:
    done = []

    @uninterrupted()
    def write() -> None:
        with uninterrupted():
            _interrupt(number)
            done.append("inner")
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == ["inner", "outer"]
    with uninterrupted():  # it comes once
        done.append("next")


def test_who_waits_may_ask_for_it() -> None:
    @uninterrupted()
    def wait() -> None:
        check_interrupt()
        _interrupt()
        check_interrupt()
        pytest.fail("it was held")

    with pytest.raises(KeyboardInterrupt):
        wait()


def test_a_second_one_is_not_held() -> None:
    @uninterrupted()
    def hang() -> None:
        _interrupt()
        _interrupt()
        pytest.fail("it was held")

    with pytest.raises(KeyboardInterrupt):
        hang()
    check_interrupt()  # none is left


def test_an_error_of_the_block_is_kept() -> None:
    @uninterrupted()
    def fail() -> None:
        _interrupt()
        raise OSError("full")

    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert isinstance(caught.value.__context__, OSError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_python_loses_is_heeded() -> None:
    lose_interrupt()  # which nobody hears of
    done = []

    @heeding_interrupts()
    def search() -> None:
        check_lost_interrupt()
        lose_interrupt()
        done.append("went on")
        check_lost_interrupt()
        pytest.fail("it was lost")

    @heeding_interrupts()
    def end() -> None:
        lose_interrupt()
        done.append("ended")

    @heeding_interrupts()
    @uninterrupted()
    def write() -> None:
        _interrupt()
        done.append("written")

    for interrupted in (search, end, heeding_interrupts()(_interrupt), write):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    with heeding_interrupts():  # none is left
        check_lost_interrupt()
    assert done == ["went on", "ended", "written"]
