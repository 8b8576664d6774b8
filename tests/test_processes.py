"""Several processes on this machine do what one does."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import UNOPTIMIZED

import pgjax
from pgjax.commands.launch import environments, free_port
from pgjax.core import processes
from pgjax.core.place import place_of

WORKER = Path(__file__).with_name("one_process.py")


def start(case, count, directory, devices=1):
    """So many processes, with so many devices each."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), case, *map(str, (process, count, port)), str(directory)],
            env=os.environ | {"PGJAX_CPU_DEVICES": str(devices), "XLA_FLAGS": UNOPTIMIZED},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(count)
    ]


def results(case, count, directory, devices=1):
    started = start(case, count, directory, devices)
    said = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    return [json.loads((directory / f"{case}-{process}.json").read_text()) for process in range(count)]


def test_processes_exchange_what_they_say_and_fail_together(tmp_path):
    first, last = results("messages", 2, tmp_path)
    for found in (first, last):
        assert found["exchanged"] == [{"process": process, "text": "x" * 3000} for process in range(2)]
        assert found["agreed"] == 10
        assert found["is whole"]
        assert found["of first"] == [[0.0, 0.0], [0.0, 0.0, 0.0]]
    expected = [
        "process 1 ended with OSError: the disk is full",
        "process 1 does not do what process 0 does: its hyperparameters.num_envs is 32, not 16",
        "PPO does not divide over the 2 devices of 2 processes: expected environments and minibatches",
        "seeds = 3 is not accepted: expected a multiple of the 2 devices of 2 processes",
        "devices = 1 is not accepted: 2 processes use all 2 they have",
        "connect: coordinator = 'nowhere' is not accepted: expected HOST:PORT",
    ]
    for said, wanted in zip(first["raised"], expected, strict=True):
        assert said.startswith(f"InputError: {wanted}")
    assert last["raised"] == ["OSError: the disk is full", *first["raised"][1:]]


def test_the_environment_says_which_process_this_is():
    assert place_of({}) is None
    ours = {"PGJAX_COORDINATOR": "node1:1234", "PGJAX_PROCESSES": "4", "PGJAX_PROCESS": "3"}
    assert place_of(ours) == ("node1:1234", 4, 3)
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[08-11,15],x"}
    assert place_of(slurm) == ("node08:61447", 8, 5)
    assert place_of(slurm | ours) == ("node1:1234", 4, 3)
    assert place_of(slurm | {"SLURM_STEP_NODELIST": "a,b[1-2]"}).coordinator == "a:61447"
    assert place_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None
    for wrong, message in (
        ({"PGJAX_PROCESS": "1"}, "PGJAX_PROCESS is set and PGJAX_COORDINATOR and PGJAX_PROCESSES is not"),
        (ours | {"PGJAX_PROCESSES": "many"}, "PGJAX_PROCESSES = 'many' is not accepted: expected a whole number"),
    ):
        with pytest.raises(pgjax.InputError, match=message):
            place_of(wrong)


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(pgjax.InputError, match="process = 2 is not accepted: expected one from 0 to 1"):
        pgjax.connect("localhost:1", 2, 2)
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(pgjax.InputError, match=f"port {port} cannot be listened on: Address already in use"):
            pgjax.connect(f"localhost:{port}", 2, 0)
    with pytest.raises(pgjax.InputError, match=f"of 3 processes number 1, 2 did not come to port {port} within 0.2 s"):
        pgjax.connect(f"localhost:{port}", 3, 0, timeout=0.2)
    with pytest.raises(pgjax.InputError, match=f"process 1 of 2 met no process 0 at localhost:{port} within 0.2 s"):
        pgjax.connect(f"localhost:{port}", 2, 1, timeout=0.2)


def test_one_process_exchanges_with_itself():
    assert processes.exchanged([1]) == [[1]]
    keys = {"key": jax.random.split(jax.random.key(1), 2)}
    back = processes.with_keys(processes.on_host(keys), keys)
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(keys["key"]))
    with pytest.raises(ValueError, match="mine"), processes.together():
        raise ValueError("mine")


def test_launched_processes_share_the_cores(monkeypatch):
    monkeypatch.delenv("PGJAX_CPU_DEVICES", raising=False)
    monkeypatch.setattr("pgjax.commands.launch.count_cores", lambda: 8)
    first, second = environments(2, 1234)
    assert {name: first[name] for name in first if name.startswith("PGJAX_") and "TEST" not in name} == {
        "PGJAX_COORDINATOR": "localhost:1234",
        "PGJAX_PROCESSES": "2",
        "PGJAX_PROCESS": "0",
        "PGJAX_CPU_DEVICES": "4",
    }
    assert second["PGJAX_PROCESS"] == "1"
    monkeypatch.setenv("PGJAX_CPU_DEVICES", "3")
    assert environments(16, 1)[0]["PGJAX_CPU_DEVICES"] == "3"


def of_many_and_of_one(case, count, directory):
    """What each of so many processes found, all alike, and what one does with as many devices."""
    found = results(case, count, directory)
    assert all(each == found[0] for each in found)
    (directory / "alone").mkdir()
    (alone,) = results(case, 1, directory / "alone", devices=count)
    return found[0], alone


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_run_is_that_of_one_process(count, tmp_path):
    found, alone = of_many_and_of_one("divided", count, tmp_path)
    for name in ("run", "lm"):
        for mine, one in zip(found[name], alone[name], strict=True):
            np.testing.assert_allclose(mine, one, atol=2e-3)


@pytest.mark.slow
def test_members_are_those_of_one_process(tmp_path):
    found, alone = of_many_and_of_one("members", 2, tmp_path)
    assert found == alone  # to the same bits
    assert (tmp_path / "sweep" / "members.csv").read_text() == (tmp_path / "alone/sweep/members.csv").read_text()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_they_go_on(tmp_path):
    found = results("stopping", 2, tmp_path)
    assert all("stopped by SIGTERM after iteration 3 of 6 and saved" in each["said"] for each in found)
    assert [each["steps_now"] for each in found] == [3 * 16 * 64] * 2
    (tmp_path / "whole").mkdir()
    whole = results("going_on", 2, tmp_path / "whole")
    assert found[0]["run"] == found[1]["run"] == whole[0]["run"]


@pytest.mark.slow
def test_where_one_process_dies_the_others_end_and_the_run_goes_on(tmp_path):
    started = start("dying", 2, tmp_path)
    said = [process.communicate(timeout=400)[0] for process in started]
    assert started[1].returncode == -9
    assert started[0].returncode not in (0, None), said
    shutil.copytree(tmp_path / "run", tmp_path / "alone" / "run")
    found = results("going_on", 2, tmp_path)
    assert 0 < found[0]["steps_now"] < 6 * 16 * 64
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = results("going_on", 2, whole)[0]["run"]
    assert found[0]["run"] == expected
    (alone,) = results("going_on", 1, tmp_path / "alone")
    for mine, of_two in zip(alone["run"], expected, strict=True):
        np.testing.assert_allclose(mine, of_two, atol=2e-3)


@pytest.mark.slow
def test_launch_trains_and_ends_with_the_status_of_what_failed(tmp_path):
    small = ["--num-envs", "16", "--num-steps", "64", "--num-minibatches", "2", "--total-steps", "4096"]
    command = [sys.executable, "-c", "from pgjax.commands.cli import main; raise SystemExit(main())", "launch"]
    train = ["train", "ppo", "--env", "CartPole-v1", "--directory", str(tmp_path / "run"), "--no-cache"]
    env = os.environ | {"XLA_FLAGS": UNOPTIMIZED}
    done = subprocess.run([*command, *train, *small], capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("return_mean=") >= 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["devices"] >= 2
    refused = subprocess.run(
        [*command, "--processes", "2", *train, "--num-envs", "0"], capture_output=True, text=True, env=env, timeout=400
    )
    assert refused.returncode == 2
    assert "PPO.num_envs = 0 is not accepted" in refused.stderr
