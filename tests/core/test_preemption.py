"""Stop signals: the first one is recorded, repeated ones change nothing, and a second Ctrl-C interrupts."""

import os
import signal

import pytest

from ltg_mdlm.core import preemption
from ltg_mdlm.core.preemption import StopRequest


@pytest.fixture
def clock(monkeypatch):
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    return now


def send(*signals):
    for number in signals:
        os.kill(os.getpid(), number)


def test_the_first_signal_is_the_reason_and_repetitions_change_nothing(clock):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        send(signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM)
        assert stop.requested
        assert stop.signal_name == "SIGUSR1"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_interrupt_that_torchrun_repeats_is_no_second_one(clock):
    with StopRequest() as stop:
        send(signal.SIGINT)
        clock[0] += 0.1
        send(signal.SIGINT)
        assert stop.signal_name == "SIGINT"
        clock[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_an_interrupt_before_training_ends_at_once_but_a_preemption_is_recorded():
    with StopRequest(can_save=False) as stop:
        send(signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize(("before", "name"), [(signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, None)])
def test_a_closed_terminal_asks_to_stop_unless_that_is_ignored(before, name):
    """nohup lets a program start with the signal ignored."""
    original = signal.signal(signal.SIGHUP, before)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert stop.signal_name == name
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, original)
