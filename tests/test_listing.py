"""What `pgjax watch` and `pgjax list` say of directories, read from the ends of their files."""

import itertools
import json
import os

import pytest
from test_plotting import fake_run

import pgjax
from pgjax.commands import cli
from pgjax.reporting import listing
from pgjax.running.directory import locked


def checkpoint(directory, iteration, score, written):
    """As much of one as is looked at from outside."""
    metrics = directory / str(iteration) / "metrics"
    metrics.mkdir(parents=True)
    (metrics / "metrics").write_text(json.dumps({"return_mean": score}))
    os.utime(directory / str(iteration), (written, written))


def watched(capsys, *arguments):
    code = cli.main(["watch", *map(str, arguments), "--once"])
    header, *rows = capsys.readouterr().out.splitlines()
    starts = [header.index(name) for name in header.split()]
    ends = [*starts[1:], None]
    return code, [[row[a:b].strip() for a, b in zip(starts, ends, strict=True)] for row in rows]


def test_a_run_that_trains_says_how_far_how_fast_and_how_good(tmp_path, capsys):
    run = fake_run(tmp_path / "run", 0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{")
    with locked(run):
        os.utime(run / "lock", (1000, 1000))
        os.utime(run / "metrics.jsonl", (1008, 1008))
        rows = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join(rows[:4]) + "\n" + rows[4][:9])
        os.utime(run / "metrics.jsonl", (1008, 1008))
        code, found = watched(capsys, tmp_path)
        assert code == 0
        assert found[0][0] == "other"
        assert found[0][3].startswith("damaged")
        assert found[1] == ["run", "CartPole-v1", "ppo", "running", "80%", "16", "return_mean 4", "", "0:00:02"]
        checkpoint(run / "checkpoints", 1, 9.0, 999)
        checkpoint(run / "checkpoints", 2, 7.5, 1004)
        _, found = watched(capsys, tmp_path)
        assert found[1][5:] == ["16", "return_mean 4", "9", "0:00:02"]
        checkpoint(run / "checkpoints", 3, 8.0, 1007)
        _, found = watched(capsys, tmp_path)
        assert found[1][5:7] == ["16", "return_mean 4"]
    assert watched(capsys, tmp_path)[1][1][3:6] == ["interrupted", "80%", ""]


def test_a_sweep_says_how_far_its_batches_are(tmp_path, capsys, monkeypatch):
    config = json.loads((fake_run(tmp_path / "base", 0) / "config.json").read_text())
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    stored = {"base": config, "axes": {}, "members": 6, "curve_points": 8, "arguments": {"seeds": 2, "points": 100}}
    (sweep / "sweep.json").write_text(json.dumps(stored))
    (sweep / "batches.json").write_text('{"stage-0/group-0": 4}')
    checkpoint(sweep / "stage-0" / "group-0" / "batch-0", 8, 0.0, 1010)
    checkpoint(sweep / "stage-0" / "group-0" / "batch-1", 2, 0.0, 1015)
    monkeypatch.setattr(listing.time, "time", lambda: 1020.0)
    with locked(sweep):
        os.utime(sweep / "lock", (1000, 1000))
        _, (_, row) = watched(capsys, tmp_path)
    assert row[:6] == ["sweep", "CartPole-v1", "ppo sweep x 6", "running", "83%", "16"]
    (sweep / "status.json").write_text('{"status": "finished"}')
    (sweep / "members.csv").write_text("seed,score\n0,1\n1,3\n0,5\n1,nan\n0,2\n1,4\n")
    _, (_, row) = watched(capsys, tmp_path)
    assert row[3:] == ["finished", "100%", "", "", "3", ""]


def test_what_is_watched_is_drawn_again_until_control_c(tmp_path, capsys, monkeypatch):
    fake_run(tmp_path / "run", 0)
    looks = itertools.count()

    def sleep(seconds):
        assert seconds == 0.5
        if next(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", sleep)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(cli.sys.stdout, "isatty", lambda: True)
    assert cli.main(["watch", str(tmp_path), "--every", "0.5"]) == 0
    assert next(looks) == 3
    captured = capsys.readouterr()
    assert "CartPole-v1" in captured.out
    assert "stopped" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--once"], "holds no runs"),
        (["--every", "0"], "--every 0.0 is not accepted: expected seconds above 0"),
        ([], "watch draws on a terminal, which this output is not: give --once"),
    ],
)
def test_what_cannot_be_watched_is_refused(tmp_path, capsys, arguments, message):
    assert cli.main(["watch", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_long_file_is_read_from_its_end(tmp_path, monkeypatch):
    run = fake_run(tmp_path / "run", 0)
    lines = (f'{{"iteration": {i}, "steps": {i}, "return_mean": 1.0}}\n' for i in range(1, 200_001))
    (run / "metrics.jsonl").write_text("".join(lines))
    directory = pgjax.running.directory
    parsed, row_of = [], directory.row_of
    monkeypatch.setattr(directory, "row_of", lambda line: (parsed.append(line), row_of(line))[1])
    assert listing.seen(run, "run").steps == 200_000
    assert len(parsed) <= 100
