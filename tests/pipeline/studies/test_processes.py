"""Work in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.studies.processes import output_into, part_of_cores, run_all

ROOT = Path(__file__).resolve().parents[3]


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
    assert results == {dies: "BrokenProcessPool", "1 // 0": "ZeroDivisionError", done: (process, 1)}


def test_what_is_left_is_not_begun_when_the_reader_stops():
    done = []
    results = run_all(done.append, [1, 2, 3], 1, say)
    next(results)
    results.close()
    assert done == [1]


WORK = "import os, time; open({told!r}, 'w').write(str(os.getpid())); time.sleep(600)"
PARENT = """
from pipeline.studies.processes import in_own_process
if __name__ == "__main__":
    in_own_process(exec, {work!r}, threads=None)
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


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system knows no affinity")
@pytest.mark.parametrize(
    ("cores", "jobs", "shares"),
    [
        (range(8), 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (range(8), 3, [[0, 1], [2, 3], [4, 5]]),
        ([1, 3], 2, [[1], [3]]),
        ([0], 2, [[], []]),  # too few to part: they share
    ],
)
def test_jobs_get_equal_parts_of_the_cores(monkeypatch, cores, jobs, shares):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cores))
    assert [part_of_cores(part, jobs) for part in range(jobs)] == shares
