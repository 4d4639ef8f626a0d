"""Signals as a terminal sends them: the first lets the work at hand be finished, the second does not wait."""

import os
import signal
import threading

import pytest

from labelloop.service.signals import Terminated, exit_status_of, graceful_stop, on_stop_signals


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _as_in_a_terminal():
    """Who starts tests in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_ctrl_c_prints_a_notice_the_second_stops(capsys):
    before = signal.getsignal(signal.SIGINT)
    with graceful_stop("the photos at work") as stop:
        assert not stop()
        press_ctrl_c()
        assert stop()
        assert capsys.readouterr().err == "Finishing the photos at work; Ctrl-C again ends at once.\n"
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_status_names_the_signal_that_stopped(number, status, capsys):
    with graceful_stop("the photos at work") as stop:
        os.kill(os.getpid(), number)
    assert (stop(), stop.exit_status) == (True, status)


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
def test_a_command_that_was_interrupted_ends_with_its_signal(stop, status):
    assert exit_status_of(stop) == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signals_call_back_and_handlers_are_restored(number):
    before, calls = signal.getsignal(number), []
    with on_stop_signals(lambda: calls.append(1)):
        for _ in range(2):
            os.kill(os.getpid(), number)
    assert calls == [1, 1]
    assert signal.getsignal(number) is before


def test_in_another_thread_nothing_is_touched():
    before, received = signal.getsignal(signal.SIGTERM), []

    def work():
        with on_stop_signals(lambda: None):
            received.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [before]
