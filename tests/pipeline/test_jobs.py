"""Work in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.jobs import output_into, run_all, task_key

ROOT = Path(__file__).resolve().parents[2]


def say(task, error):
    return type(error).__name__


def test_one_job_is_done_in_this_process_in_order_and_an_error_is_a_result():
    assert list(run_all(eval, ["6 * 7", "1 // 0", "__import__('os').getpid()"], 1, say)) == [
        ("6 * 7", 42),
        ("1 // 0", "ZeroDivisionError"),
        ("__import__('os').getpid()", os.getpid()),
    ]


def test_jobs_have_processes_of_one_thread_and_one_that_dies_takes_no_other_with_it():
    done = "__import__('os').getpid(), __import__('torch').get_num_threads()"
    dies = "__import__('os')._exit(9)"  # as where memory runs out
    results = dict(run_all(eval, [dies, "1 // 0", done], 2, say))
    process, threads = results[done]
    assert process != os.getpid()
    assert threads == 1
    assert results == {dies: "KilledWorker", "1 // 0": "ZeroDivisionError", done: (process, 1)}


def test_who_is_no_scheduler_is_named(monkeypatch):
    monkeypatch.setattr("pipeline.jobs.CONNECTING", 0.5)
    for address in ("tcp://127.0.0.1:9", "nowhere"):
        with pytest.raises(ValueError, match=f"scheduler must be the address of a Dask scheduler, got '{address}'"):
            list(run_all(eval, ["1"], 1, say, address))


def test_what_is_left_is_not_begun_when_the_reader_stops():
    done = []
    results = run_all(done.append, [1, 2, 3], 1, say)
    next(results)
    results.close()
    assert done == [1]


WORK = "import os, time; open({told!r}, 'w').write(str(os.getpid())); time.sleep(600)"
PARENT = """
from pipeline.jobs import run_all
if __name__ == "__main__":
    list(run_all(exec, [{work!r}], 2, print))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path):
    script, told = tmp_path / "parent.py", tmp_path / "worker"
    script.write_text(PARENT.format(work=WORK.format(told=str(told))))
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 240
    while not (told.exists() and told.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while is_running(int(told.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process):
    try:
        os.kill(process, 0)  # only asks
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    # One that has ended but that nobody asks for stays as a zombie.
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_output_goes_to_the_end_of_a_file_and_back_again(tmp_path, capfd):
    path = tmp_path / "log"
    path.write_text("before\n")

    def work():
        with output_into(path):
            print("python")
            print("error", file=sys.stderr)
            sys.stdout.flush()
            os.write(1, b"library\n")
            raise KeyError

    with capfd.disabled():  # in which Python's streams are no longer those of the process
        places = [os.fstat(stream).st_ino for stream in (1, 2)]
        with pytest.raises(KeyError):
            work()
        assert places == [os.fstat(stream).st_ino for stream in (1, 2)]
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert sorted(lines[1:]) == ["error", "library", "python"]


def test_tasks_have_names_and_are_of_one_kind():
    """To Dask, tasks are of one kind if what its `key_split` makes of their keys is the same."""
    from distributed.utils import key_split

    for name in ("phantom-nicegan-nc+r-affine0.5-seed0", "p-1/T1 (2).nii.gz", "abc", ""):
        key = task_key("translate volume", name)
        assert key_split(key) == "translate volume"
        assert name.replace("-", " ") in key
        assert key != task_key("translate volume", name)


def test_tasks_wait_for_the_worker_that_is_free():
    """Of a cluster as users start it; tasks of as many kinds as there are were all given to one worker at once."""
    from distributed import Client, LocalCluster

    where = "__import__('time').sleep(0.2) or __import__('distributed').get_worker().name"
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        pool = client.get_executor(pure=False)
        done = [pool.submit(eval, where, key=task_key("cell", f"number{number}")) for number in range(8)]
        names = [future.result() for future in done]
    assert all(names.count(name) >= 3 for name in (0, 1)), names
