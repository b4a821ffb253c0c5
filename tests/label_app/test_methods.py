"""The app translates with every method as offline inference does, given nothing but the model file."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

from monai.bundle.scripts import run as run_bundle

from pipeline.label_app.infer import TranslationTask
from pipeline.methods import METHODS
from pipeline.models import Model

TOLERANCE = 1e-4  # of the target's window


@pytest.mark.parametrize("name", METHODS)
def test_equals_offline_inference(train_model, methods, copy_bundle, studies, tmp_path, name):
    overlays, tiny = methods(name)
    trained = train_model(*overlays, **tiny)
    bundle = copy_bundle(tmp_path / "bundle")
    model = shutil.move(trained, bundle / "models" / "model.pt")
    file, said = TranslationTask(bundle, {})({"image": str(studies / "oblique.nii.gz"), "device": "cpu"})
    settings = {"checkpoint": str(model), "image": str(studies / "oblique.nii.gz"), "device": "cpu"}
    configs = str(bundle / "configs" / "inference.json")
    run_bundle(config_file=configs, logging_file=False, output_dir=str(tmp_path / "offline"), **settings)

    served, expected = nib.load(file), nib.load(tmp_path / "offline" / "oblique_translated.nii.gz")
    width = Model(model).recipe.data_range
    assert (said["model"]["method"], said["model"]["data_range"]) == (name, width)
    np.testing.assert_allclose(served.affine, expected.affine, atol=1e-5)
    assert np.ptp(expected.get_fdata()) > 0.01 * width
    np.testing.assert_allclose(served.get_fdata(), expected.get_fdata(), rtol=0, atol=TOLERANCE * width)
