"""The recipe "A sampler" of CONTRIBUTING.md, followed to the letter: one file and an overlay, no more."""

from __future__ import annotations

import json
import sys
from textwrap import dedent

import pytest

from pipeline.models import Model

SAMPLER = '''
    """Halves of slices: the left and the right one, as examples of their own."""

    import torch

    from pipeline.data import PairDataset


    class Halves(PairDataset):
        """Items are (1, H / 2, W)."""

        def __len__(self):
            return 2 * len(self.places)

        def __getitem__(self, index):
            number, place = self.places[index // 2]
            pair = self.pairs[number]
            half = self.spatial_size[0] // 2
            rows = slice(half) if index % 2 == 0 else slice(half, 2 * half)
            item = {"case": pair.case, "slice": pair.indices[place]}
            for key, volume in (("image", pair.image), ("label", pair.label)):
                item[key] = torch.as_tensor(volume[pair.rows[place]])[:, rows].clone()
            return self.finished(item, index)
'''


@pytest.fixture
def overlay(tmp_path, monkeypatch):
    (tmp_path / "my_sampler.py").write_text(dedent(SAMPLER))
    dataset = {"_target_": "my_sampler.Halves", "transform": "@train#preprocessing", "slice_axis": "@slices_along"}
    content = {
        "train#dataset": {**dataset, "data": "$@cases['training']", "store": "@store"},
        "validate#dataset": {**dataset, "data": "$@cases['validation']", "store": "@store"},
    }
    (tmp_path / "halves.json").write_text(json.dumps(content))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield str(tmp_path / "halves.json")
    sys.modules.pop("my_sampler", None)


@pytest.mark.parametrize("store", [True, False])
def test_a_sampler_is_one_file_and_an_overlay(run_config, tmp_path, capsys, overlay, store):
    where = {"store": str(tmp_path / "store") if store else "none"}
    run_config("train.json", overlay, **where, spatial_size=[80, 40])
    assert Model(tmp_path / "run" / "model.pt").recipe.spatial_size == (80, 40)
    assert "prediction" in capsys.readouterr().out
    assert (tmp_path / "store").is_dir() == store
