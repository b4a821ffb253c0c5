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


# Without the last two it asks the model zoo in the internet, and loads a segmentation network.
OPTIONS = ("--conf", "zoo_source", "local", "--conf", "sam2", "false")


def test_translates_as_offline(start_server, app, studies, offline):
    server = start_server(studies, "--conf", "models", "reggan", *OPTIONS, app=app)
    expected = offline(app / "model" / "reggan" / "models" / "model.pt", studies / "oblique.nii.gz")
    response = server.translate("oblique")
    assert response.status_code == 200, response.text
    served = nib.Nifti1Image.from_bytes(gzip.decompress(response.content))
    assert served.get_data_dtype() == np.float32
    np.testing.assert_allclose(served.affine, expected.affine, atol=1e-4)  # its writer goes through a quaternion
    np.testing.assert_allclose(served.get_fdata(), expected.get_fdata(), rtol=0, atol=1e-5)


def test_does_not_start_with_weights_of_no_use(start_server, app, studies):
    """MONAI Label alone would answer from random ones."""
    with pytest.raises(AssertionError, match="startup failed"):
        start_server(studies, "--conf", "models", "foreign", *OPTIONS, app=app)
