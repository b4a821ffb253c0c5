"""MONAI Label's own ``monaibundle`` app serves the bundle too."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")


@pytest.fixture(scope="module")
def app(bundles, tmp_path_factory):
    """The app as MONAI Label hands it out, with our bundles in its folder."""
    folder = tmp_path_factory.mktemp("stock")
    python = Path(sys.executable)
    command = [python, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", folder]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, env={**os.environ, "HOME": "/"})
    for name in ("reggan", "foreign"):
        shutil.copytree(bundles / name, folder / "monaibundle" / "model" / name)
    return folder / "monaibundle"


def test_translates_as_offline(start_server, app, studies, offline):
    # Without these two it asks the model zoo in the internet, and loads a segmentation network.
    options = ("--conf", "models", "reggan,foreign", "--conf", "zoo_source", "local", "--conf", "sam2", "false")
    server = start_server(studies, *options, app=app)
    expected = offline(app / "model" / "reggan", studies / "oblique.nii.gz")
    response = server.translate("oblique")
    assert response.status_code == 200, response.text
    served = nib.Nifti1Image.from_bytes(gzip.decompress(response.content))
    assert served.get_data_dtype() == np.float32
    np.testing.assert_allclose(served.affine, expected.affine, atol=1e-4)  # its writer goes through a quaternion
    np.testing.assert_allclose(served.get_fdata(), expected.get_fdata(), rtol=0, atol=1e-5)

    # Foreign weights: MONAI Label alone would answer from random ones.
    assert server.translate("oblique", model="foreign").status_code == 500
