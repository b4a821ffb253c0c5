"""The queue of translations: one after the other, with places, a limit, and ways out."""

from __future__ import annotations

import threading
import weakref

import pytest

from pipeline.label_app.worker import CancelledTranslationError, NoPlaceError, TranslationQueue

SECONDS = 20


class Work:
    """Translates one slice at a time, when it is let."""

    def __init__(self, slices=2):
        self.slices, self.go, self.begun = slices, threading.Semaphore(0), threading.Event()

    def __call__(self, progress):
        self.begun.set()
        progress.total = self.slices
        while progress.done < self.slices:
            progress.check()
            assert self.go.acquire(timeout=SECONDS)
            progress.done += 1
        return "translated"


def test_one_after_the_other_with_places_and_progress():
    queue, works = TranslationQueue(), [Work() for _ in range(3)]
    jobs = [queue.submit(f"job-{number}", work, "reggan") for number, work in enumerate(works)]
    assert works[0].begun.wait(SECONDS)
    works[0].go.release()
    for _ in range(200):
        if jobs[0].progress.done:
            break
        threading.Event().wait(0.02)
    said = [about for _, about in queue.describe()]
    assert [(one["id"], one["state"], one["place"]) for one in said] == [
        ("job-0", "running", 0),
        ("job-1", "waiting", 1),
        ("job-2", "waiting", 2),
    ]
    assert (said[0]["slices_done"], said[0]["slices"], said[1]["slices"]) == (1, 2, None)
    assert not works[1].begun.is_set()
    for work in works:
        work.go.release(2)
    assert [job.result.result(SECONDS) for job in jobs] == ["translated"] * 3


def test_a_full_queue_says_when_to_come_again():
    queue, work = TranslationQueue(limit=2), Work()
    first = queue.submit("first", work)
    second = queue.submit("second", lambda progress: None)
    with pytest.raises(NoPlaceError, match=r"is full: 2 translations wait or run; try again in 10 s") as caught:
        queue.submit("third", work)
    assert caught.value.retry_after == 10
    work.go.release(2)
    assert first.result.result(SECONDS) == "translated"
    second.result.result(SECONDS)
    queue.submit("third", lambda progress: None).result.result(SECONDS)


def test_ids_are_of_one_translation():
    queue, work = TranslationQueue(), Work()
    job = queue.submit("same", work)
    with pytest.raises(ValueError, match="'same' is in the queue already"):
        queue.submit("same", work)
    work.go.release(2)
    job.result.result(SECONDS)


def test_whoever_waits_gives_up_the_place():
    queue, work, never = TranslationQueue(), Work(), Work()
    running, waiting, last = queue.submit("running", work), queue.submit("waiting", never), queue.submit("last", work)
    queue.cancel(waiting)
    with pytest.raises(CancelledTranslationError):
        waiting.result.result(SECONDS)
    assert [(job.id, about["place"]) for job, about in queue.describe()] == [("running", 0), ("last", 1)]
    work.go.release(4)
    assert (running.result.result(SECONDS), last.result.result(SECONDS)) == ("translated",) * 2
    assert not never.begun.is_set()


def test_one_that_runs_ends_at_its_next_slice_and_the_next_has_its_turn():
    queue, work = TranslationQueue(), Work(slices=1000)
    job, after = queue.submit("running", work), queue.submit("after", lambda progress: "translated")
    assert work.begun.wait(SECONDS)
    queue.cancel(job)
    [(_, about), _] = queue.describe()
    assert about["state"] == "cancelling"
    work.go.release()
    with pytest.raises(CancelledTranslationError):
        job.result.result(SECONDS)
    assert after.result.result(SECONDS) == "translated"
    assert job.progress.done <= 1


def test_a_fault_is_the_answer_and_no_end_of_the_queue():
    queue = TranslationQueue()

    def fail(progress):
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        queue.submit("fails", fail).result.result(SECONDS)
    assert queue.submit("next", lambda progress: 1).result.result(SECONDS) == 1
    assert len(queue) == 0


def test_nothing_is_kept_of_what_is_done():
    class Volume:
        pass

    queue = TranslationQueue()
    job = queue.submit("one", lambda progress: Volume())
    kept = weakref.ref(job.result.result(SECONDS))
    del job
    queue.submit("two", lambda progress: None).result.result(SECONDS)
    assert kept() is None


def test_all_are_sent_away_when_the_server_ends():
    queue, work = TranslationQueue(), Work()
    jobs = [queue.submit(str(number), work) for number in range(3)]
    assert work.begun.wait(SECONDS)
    queue.close()
    work.go.release()
    for job in jobs:
        with pytest.raises(CancelledTranslationError):
            job.result.result(SECONDS)
    with pytest.raises(NoPlaceError, match="is being stopped"):
        queue.submit("late", work)
