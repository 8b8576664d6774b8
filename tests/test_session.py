"""What runs and sweeps do alike: when checkpoints are due, how work is driven and stopped, and what differs."""

import signal
import time

import numpy as np
import pytest

import pgjax
from pgjax.running.config import differences
from pgjax.running.session import Clock, Progress, Stopped, drive


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
        drive(0, 9, advance, lambda *x: kept.append(x), lambda _: None, stopped, lambda position: f"at {position}")
    assert kept == [(1, False), (2, False), (3, True)]
    drive(2, 3, advance, lambda *x: kept.append(x), lambda _: True, [signal.SIGTERM], lambda _: "never said at the end")
    assert kept[-1] == (3, True)


def test_work_stops_when_it_is_asked_to_and_is_kept_whatever_the_question_raises():
    kept = []

    def how_to_go_on(position):
        return f"at {position}"

    with pytest.raises(Stopped, match="stopped by the callback at 2") as stop:
        drive(0, 9, lambda x: x + 1, lambda *x: kept.append(x), lambda x: x == 2, [], how_to_go_on)
    assert stop.value.position == 2
    assert kept == [(1, False), (2, True)]

    def fail(position):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        drive(4, 9, lambda x: x + 1, lambda *x: kept.append(x), fail, [], how_to_go_on)
    assert kept[-1] == (5, True)


def progress(iteration, *returns):
    return Progress(iteration, 10 * iteration, {"return_mean": np.array(returns, np.float32)}, lambda: None)


def test_early_stopping_at_a_goal_of_a_mean():
    stop = pgjax.EarlyStopping("return_mean", goal=10, window=2)
    assert not stop(progress(2, 0.0, 12.0))
    assert not stop(progress(4, np.nan, 7.0))
    assert stop(progress(6, 13.0, 0.0)), "the mean of 7 and 13 was enough, whatever came after it"
    lower = pgjax.EarlyStopping("return_mean", goal=-1, window=1, better="lower")
    assert [lower(progress(1, x)) for x in (3.0, -0.5, -2.0)] == [False, False, True]


def test_early_stopping_when_nothing_gets_better():
    stop = pgjax.EarlyStopping("return_mean", patience=3, window=1)
    assert not stop(progress(2, 5.0, 4.0))
    assert not stop(progress(3, 4.5))
    assert not stop(progress(4, 6.0))
    assert not stop(progress(6, 5.0, np.nan))
    assert stop(progress(7, 5.9))


def test_early_stopping_of_members_watches_their_mean():
    stop = pgjax.EarlyStopping("return_mean", goal=2, window=1)
    several = Progress(1, 10, {"return_mean": np.array([[1.0, 2.0]])}, lambda: None)
    assert not stop(several)
    assert stop(several._replace(metrics={"return_mean": np.array([[1.0, 3.5]])}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "goal = None and patience = None never end a run"),
        ({"patience": 0}, "EarlyStopping: patience = 0 is not accepted"),
        ({"goal": 1.0, "window": 0}, "EarlyStopping: window = 0 is not accepted"),
        ({"goal": 1.0, "better": "max"}, "EarlyStopping.better = 'max' is not accepted: expected 'higher' or 'lower'"),
    ],
)
def test_early_stopping_refuses(fields, message):
    with pytest.raises(pgjax.InputError, match=message):
        pgjax.EarlyStopping("return_mean", **fields)


def test_early_stopping_knows_the_names_of_metrics():
    with pytest.raises(pgjax.InputError, match=r"EarlyStopping\.metric = 'returns': did you mean return_mean"):
        pgjax.EarlyStopping("returns", goal=1.0)(progress(1, 0.0))


def test_differences_have_the_names_of_axes():
    stored = {"parts": {"network": {"name": "mlp", "options": {"hidden": [8]}}}, "seed": 1, "sinks": []}
    wanted = {"parts": {"network": {"name": "mlp", "options": {"hidden": (16,)}}}, "seed": 1, "sinks": ["csv"]}
    assert differences(stored, wanted, ("parts", "seed")) == {"network.hidden": ([8], [16])}
    assert differences(stored, stored | {"seed": 2}, ("seed",)) == {"seed": (1, 2)}
