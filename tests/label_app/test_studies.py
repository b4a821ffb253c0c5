"""The folder of studies under requests that come at once."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

from monailabel.interfaces.exception import MONAILabelException

from pipeline.label_app.studies import Studies


def test_requests_at_once_and_the_watcher_do_not_disturb_each_other(tmp_path):
    """MONAI Label's own datastore fails in a second or two, and its watcher with it."""
    volume = tmp_path / "volume.nii.gz"
    volume.write_bytes(b"any")
    studies = Studies(str(tmp_path / "studies"), auto_reload=True)
    kept = {f"kept{i}" for i in range(20)}
    for name in kept:
        studies.add_image(name, str(volume), {})
    faults: list[BaseException] = []
    deadline = time.monotonic() + 4

    def work(name: str) -> None:
        try:
            while time.monotonic() < deadline:
                studies.add_image(name, str(volume), {})
                studies.save_label(name, str(volume), "final", {})
                studies.refresh()
                assert kept <= set(studies.list_images())
                studies.datalist(), studies.status(), studies.json()
                with contextlib.suppress(MONAILabelException):  # the watcher has seen that it is gone
                    studies.remove_image(name)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(f"new{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert not faults
        assert studies._observer.is_alive()
        (tmp_path / "studies" / "late.nii.gz").write_bytes(b"any")
        deadline = time.monotonic() + 20
        while "late" not in studies.list_images():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        studies._observer.stop()
        studies._observer.join()
