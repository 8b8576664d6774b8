"""Sinks: what is read back is what was logged."""

import csv
import importlib
import json
import math
import shutil
import struct
import threading

import chex
import numpy as np
import pytest

import pgjax
from pgjax.running import directory
from pgjax.running.sinks import SINKS, Background, Csv, JsonLines, Named, TensorBoard

run_module = importlib.import_module("pgjax.running.shell")
ROWS = [
    {"iteration": i, "steps": 32 * i, "return_mean": math.nan if i == 2 else 1.5 * i, "value_loss": 0.1 * i}
    for i in range(1, 6)
]


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_json_lines_keep_numbers_exactly_and_absent_ones_as_null(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(ROWS[:3])
    sink.write(ROWS[3:])
    sink.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["value_loss"] for row in rows] == [row["value_loss"] for row in ROWS]
    assert [row["return_mean"] for row in rows] == [1.5, None, 4.5, 6.0, 7.5]


def test_csv_has_one_header_and_empty_cells_for_absent_numbers(tmp_path):
    sink = Csv(tmp_path / "metrics.csv")
    sink.write(ROWS[:3])
    sink.write(ROWS[3:])
    sink.close()
    rows = read_csv(tmp_path / "metrics.csv")
    assert len(rows) == 5
    assert [row["return_mean"] for row in rows] == ["1.5", "", "4.5", "6.0", "7.5"]


@pytest.mark.parametrize(("sink", "name"), [(JsonLines, "metrics.jsonl"), (Csv, "metrics.csv")])
def test_a_continued_file_drops_what_will_be_written_again(tmp_path, sink, name):
    path = tmp_path / name
    whole = sink(tmp_path / f"whole-{name}")
    whole.write(ROWS)
    whole.close()
    first = sink(path)
    first.write(ROWS[:4])
    first.close()
    with path.open("a") as file:
        file.write("half a li")
    second = sink(path, iteration=2)
    second.write(ROWS[2:])
    second.close()
    assert path.read_bytes() == (tmp_path / f"whole-{name}").read_bytes()


def test_a_slow_sink_is_waited_for_and_says_so_once():
    release, got = threading.Event(), []

    class Slow:
        def write(self, rows):
            release.wait(10)
            got.extend(rows)

        def flush(self):
            got.append("flushed")

        def close(self):
            got.append("closed")

    sink = Background("slow", Slow(), backlog=1)
    sink.write(ROWS[:1])
    threading.Timer(0.2, release.set).start()
    with pytest.warns(UserWarning, match="the slow sink is slower than training") as warned:
        for row in ROWS[1:]:
            sink.write([row])
    sink.flush()
    sink.close()
    assert got == [*ROWS, "flushed", "closed"]
    assert len(warned) == 1


def test_an_error_in_the_background_reaches_the_run():
    class Broken:
        def write(self, rows):
            raise RuntimeError("no such server")

        def close(self):
            pass

    sink = Background("broken", Broken())
    sink.write(ROWS[:1])
    with pytest.raises(OSError, match="the broken sink failed: no such server"):
        for _ in range(1000):
            sink.write(ROWS[:1])
            threading.Event().wait(0.01)
    with pytest.warns(UserWarning, match="the broken sink failed: no such server"):
        sink.close()


@pytest.fixture(scope="module")
def logged(tiny, tmp_path_factory):
    """A run with every sink."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        directory = tmp_path_factory.mktemp("logged") / "run"
        sinks = ("csv", "tensorboard", "wandb")
        result = pgjax.run(tiny, 0, directory, sinks=sinks, episodes=4, progress=False)
    return directory, result


def test_tensorboards_own_reader_reads_the_run(logged):
    directory, result = logged
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    for name in ("value_loss", "entropy", "episodes"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose([s.value for s in scalars], result.metrics[name], rtol=1e-6)


def leveldb_records(log):
    """The records of an offline file: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    position, record = 7, b""
    while position + 7 <= len(log):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", log[position : position + 7])
        record += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def test_wandb_offline_files_hold_the_run(logged):
    directory, result = logged
    from wandb.proto import wandb_internal_pb2

    found = {}
    for data in leveldb_records(next(directory.rglob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            found[items["iteration"]] = items["value_loss"]
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([found[i] for i in sorted(found)], result.metrics["value_loss"], rtol=1e-6)


def test_csv_of_a_run_equals_its_json_lines(logged):
    directory, _ = logged
    rows = read_csv(directory / "metrics.csv")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["entropy"]) for row in rows] == [line["entropy"] for line in lines]


def many_rows(path, count, width=40):
    path.write_text("".join(json.dumps({"iteration": i, "x": "y" * (i % width)}) + "\n" for i in range(1, count + 1)))
    return path


def test_the_end_of_a_long_file_is_read_without_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "BLOCK", 100)
    path = many_rows(tmp_path / "metrics.jsonl", 1000)
    for most in (1, 3, 50):
        assert [row["iteration"] for row in directory.last_rows(path, most)] == list(range(1001 - most, 1001))
    assert len(directory.last_rows(path, 5000)) == 1000
    with path.open("a") as file:
        file.write('{"iteration": 1001')  # being written
    assert directory.last_rows(path, 1)[0]["iteration"] == 1000
    assert directory.last_rows(tmp_path / "none.jsonl", 3) == []
    path.write_bytes(b"\xff\n\xfe\n")
    with pytest.raises(pgjax.InputError, match="none of its last lines can be read"):
        directory.last_rows(path, 2)


def test_some_rows_of_a_long_file_are_its_rows_in_order_with_both_ends(tmp_path):
    path = many_rows(tmp_path / "metrics.jsonl", 5000)
    some = [row["iteration"] for row in directory.some_rows(path, 100)]
    assert 90 <= len(some) <= 101
    assert some == sorted(set(some))
    assert (some[0], some[-1]) == (1, 5000)
    assert max(np.diff(some)) < 120
    short = many_rows(tmp_path / "short.jsonl", 30, width=1)
    assert [row["iteration"] for row in directory.some_rows(short, 100)] == list(range(1, 31))


def test_a_mark_knows_what_was_written_and_where_it_ended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path)
    file.write([{"iteration": 1, "x": 0.5}])
    mark = file.mark
    assert mark.is_of(path)
    file.write([{"iteration": 2, "x": 0.25}])
    assert mark.is_of(path), "what came later is not its matter"
    later = file.mark
    file.close()
    assert mark.size < later.size == path.stat().st_size
    again = JsonLines(path, 1, mark)
    assert again.mark == mark
    again.write([{"iteration": 2, "x": 0.25}])
    assert again.mark == later
    again.close()
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6"))
    assert not mark.is_of(path)
    assert not mark.is_of(tmp_path / "none")


class Failing:
    """Takes rows until one of its methods fails."""

    def __init__(self, method):
        self.method = method

    def write(self, rows):
        self._fail("write")

    def flush(self):
        self._fail("flush")

    def close(self):
        self._fail("close")

    def _fail(self, method):
        if method == self.method:
            raise RuntimeError("no such server")


@pytest.mark.parametrize("method", ["write", "flush", "close"])
def test_a_sink_that_fails_ends_the_run_by_name_and_what_was_trained_is_kept(tiny, tmp_path, monkeypatch, method):
    whole = pgjax.run(tiny, 0, progress=False)
    monkeypatch.setattr(run_module, "CHUNK_SECONDS", 0.0)
    monkeypatch.setitem(SINKS, "mine", Named(lambda *_: Failing(method)))
    with pytest.raises(OSError, match=f"the sink Failing failed in {method}: no such server"):
        pgjax.run(tiny, 0, tmp_path / "run", sinks=("mine",), episodes=4, checkpoint_every=4, progress=False)
    assert directory.status(tmp_path / "run").startswith("failed: the sink Failing failed in")
    kept = pgjax.load(tmp_path / "run")
    assert int(kept.state.iteration) == {"write": 1, "flush": 4, "close": 6}[method]
    result = pgjax.run(tiny, 0, tmp_path / "run", episodes=4, checkpoint_every=4, progress=False)
    chex.assert_trees_all_equal(result.state.params, whole.state.params)


def test_a_tensorboard_directory_that_was_removed_is_noticed(tmp_path):
    sink = TensorBoard(tmp_path / "tensorboard")
    sink.write(ROWS)
    sink.flush()
    shutil.rmtree(tmp_path / "tensorboard")
    with pytest.raises(OSError, match="tensorboard: it was removed while the run was writing it"):
        sink.flush()
