"""What runs and sweeps do alike: when checkpoints are due, how work is driven and stopped, and what differs."""

import signal
import time

import pytest

import pgjax
from pgjax.running.config import differences
from pgjax.running.session import Clock, drive


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return clock


def test_checkpoints_are_due_every_minute(now):
    clock = Clock(None)
    assert clock.left(7) is None
    due = []
    for second in range(1, 200):
        now[0] = float(second)
        if clock.is_due(second):
            due.append(second)
            with clock.measured():
                now[0] += 0.5
    assert due == [60, 121, 182]


def test_checkpoints_take_two_percent_of_the_time_at_most(now):
    """One that costs five seconds is due every 250."""
    clock, spent, due = Clock(None), 0.0, 0
    while now[0] < 10_000:
        now[0] += 1.0
        if clock.is_due(0):
            due += 1
            with clock.measured():
                now[0] += 5.0
            spent += 5.0
    assert due == pytest.approx(10_000 / 255, abs=2)
    assert spent / now[0] <= 0.0205


def test_checkpoints_by_iterations_do_not_ask_the_clock(now):
    clock = Clock(5)
    assert [clock.left(i) for i in range(7)] == [5, 4, 3, 2, 1, 5, 4]
    now[0] = 1e6
    assert [i for i in range(1, 12) if clock.is_due(i)] == [5, 10]


def test_work_stops_after_the_piece_in_which_a_signal_came():
    stopped, kept = [], []

    def advance(position):
        if position == 2:
            stopped.append(signal.SIGTERM)
        return position + 1

    with pytest.raises(pgjax.Interrupted, match="stopped by SIGTERM at 3"):
        drive(0, 9, advance, lambda *x: kept.append(x), stopped, lambda position: f"at {position}")
    assert kept == [(1, False), (2, False), (3, True)]
    drive(2, 3, advance, lambda *x: kept.append(x), [signal.SIGTERM], lambda position: "never said at the end")
    assert kept[-1] == (3, True)


def test_differences_have_the_names_of_axes():
    stored = {"parts": {"network": {"name": "mlp", "options": {"hidden": [8]}}}, "seed": 1, "sinks": []}
    wanted = {"parts": {"network": {"name": "mlp", "options": {"hidden": (16,)}}}, "seed": 1, "sinks": ["csv"]}
    assert differences(stored, wanted, ("parts", "seed")) == {"network.hidden": ([8], [16])}
    assert differences(stored, stored | {"seed": 2}, ("seed",)) == {"seed": (1, 2)}
