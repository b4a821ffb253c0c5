"""Properties of the pictures: what they show, and that drawing them leaves no trace in the training."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure

from pipeline.handlers.pictures import EvaluationPictures, PictureHandler
from pipeline.reporting import panels
from transforms.deformation import RandDeformationNoised

SIZE = 32


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the files is most of the time."""
    monkeypatch.setattr(panels, "DPI", 40)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def panel(figure: Figure, title: str):
    return next(axes for axes in figure.axes if axes.get_title() == title)


class NoisySlices:
    """Data set that disturbs every global random state when read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, object]:
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        draw = np.random.default_rng(index)
        image, label = (torch.from_numpy(draw.uniform(-1, 1, (1, SIZE, SIZE)).astype(np.float32)) for _ in range(2))
        return {"image": image, "label": label, "case": f"patient{index % 2}", "slice": index}


def train(handler: PictureHandler, epochs: int = 1, stop_at: int | None = None) -> None:
    trainer = Engine(lambda engine, batch: None)
    handler.attach(trainer)
    if stop_at is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop_at), lambda: trainer.terminate())
    trainer.run([0], max_epochs=epochs)


def names(output_dir: Path) -> list[str]:
    return sorted(path.name for path in (output_dir / "pictures").iterdir())


def test_pictures_come_each_interval_and_at_the_end(tmp_path, make_translator, figures):
    train(PictureHandler(tmp_path, NoisySlices(), make_translator(), interval=2, rows=1), epochs=5)
    assert names(tmp_path) == ["epoch_0002.png", "epoch_0004.png", "epoch_0005.png"]
    assert len(figures) == 3


def test_a_run_that_stops_early_gets_its_last_picture(tmp_path, make_translator):
    train(PictureHandler(tmp_path, NoisySlices(), make_translator(), interval=10, rows=1), epochs=8, stop_at=3)
    assert names(tmp_path) == ["epoch_0003.png"]


def test_the_same_slices_and_misalignment_each_time(tmp_path, make_translator, figures):
    noise = RandDeformationNoised(keys=("image", "label"), level=5)
    handler = PictureHandler(tmp_path, NoisySlices(), make_translator(), rows=2, noise=noise)
    train(handler, epochs=2)
    for title in ("Source", "Target", "Misaligned target", "Displacement"):
        first, second = (panel(figure, title).images[0].get_array() for figure in figures)
        np.testing.assert_array_equal(first, second)
    labels = [item.get_text() for item in figures[0].texts]
    assert "patient1\nslice 3" in labels
    assert "patient1\nslice 9" in labels
    misaligned, target = (panel(figures[0], title).images[0].get_array() for title in ("Misaligned target", "Target"))
    assert np.abs(misaligned - target).max() > 0.1


def test_registration_is_shown_only_where_there_is_one(tmp_path, make_translator, figures):
    train(PictureHandler(tmp_path, NoisySlices(), make_translator(), rows=1))
    train(PictureHandler(tmp_path, NoisySlices(), make_translator({"adversarial": 1.0}), rows=1))
    assert titles(figures[0])[4:] == ["Warped prediction", "Displacement"]
    assert titles(figures[1])[4:] == []


def test_training_is_not_disturbed(tmp_path, make_translator):
    translator = make_translator()
    translator.register_forward_pre_hook(lambda *_: torch.rand(1) and None)  # as a backbone that draws a style
    translator.train()
    translator.generator.eval()  # frozen
    noise = RandDeformationNoised(keys=("image", "label"), level=3)
    noise.set_random_state(seed=7)
    twin = RandDeformationNoised(keys=("image", "label"), level=3)
    twin.set_random_state(seed=7)

    handler = PictureHandler(tmp_path, NoisySlices(), translator, noise=noise)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    train(handler)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert translator.training
    assert translator.discriminator.training
    assert not any(module.training for module in translator.generator.modules())
    assert all(parameter.grad is None for parameter in translator.parameters())
    pair = {name: torch.rand(1, 1, SIZE, SIZE) for name in ("image", "label")}
    assert torch.equal(noise(dict(pair))["label"], twin(dict(pair))["label"])


def test_states_are_put_back_when_drawing_fails(tmp_path, make_translator):
    translator = make_translator()
    translator.register_forward_hook(lambda *_: 1 / 0)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        train(PictureHandler(tmp_path, NoisySlices(), translator))
    assert torch.equal(before, torch.get_rng_state())
    assert translator.training


def test_numbers_that_make_no_sense_are_refused(tmp_path, make_translator):
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        PictureHandler(tmp_path, NoisySlices(), make_translator(), interval=0)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        PictureHandler(tmp_path, NoisySlices(), make_translator(), rows=0)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        EvaluationPictures(tmp_path, count=0)


def test_an_empty_data_set_is_refused(tmp_path, make_translator):
    with pytest.raises(ValueError, match="is empty"):
        train(PictureHandler(tmp_path, [], make_translator()))


def evaluate(handler: EvaluationPictures, batches: int, batch_size: int, **details: torch.Tensor) -> None:
    def step(engine: Engine, number: int) -> dict[str, object]:
        images = {name: torch.rand(batch_size, 1, SIZE, SIZE) for name in ("image", "label", "pred", "intensity_map")}
        index = torch.arange(number * batch_size, (number + 1) * batch_size)
        return {**images, "case": ["a"] * batch_size, "slice": index, "other": None}

    evaluator = Engine(step)
    evaluator.state.metric_details = details
    handler.attach(evaluator)
    evaluator.run(range(batches))


@pytest.mark.parametrize(("batches", "batch_size"), [(1, 3), (7, 4), (400, 1)])
def test_evaluation_shows_cases_from_all_over(tmp_path, figures, batches, batch_size):
    total = batches * batch_size
    psnr = torch.arange(total) / 10
    handler = EvaluationPictures(tmp_path, count=4)
    evaluate(handler, batches, batch_size, psnr=psnr, intensity_map_psnr=-psnr)
    assert (tmp_path / "pictures" / "error_maps.png").is_file()
    labels = [item.get_text() for item in figures[0].texts]
    slices = [int(label.split("slice ")[1]) for label in labels if label.startswith("a\nslice")]
    assert len(slices) == min(4, total)
    assert slices == sorted(set(slices))
    # Each quarter of the cases has its slice.
    assert len({index * 4 // total for index in slices}) == len(slices)
    assert f"{len(slices)} of {total} evaluated slices" in labels
    assert titles(figures[0])[3:] == ["Error", "Intensity map", "Its error"]
    captions = [axes.get_xlabel() for axes in figures[0].axes if axes.get_xlabel().startswith("PSNR")]
    assert captions[::2] == [f"PSNR {index / 10:.2f} dB" for index in slices]


def test_shown_slices_are_kept_as_they_were(tmp_path):
    seen = {}

    def step(engine: Engine, number: int) -> dict[str, object]:
        seen[number] = {name: torch.rand(1, 1, SIZE, SIZE) for name in ("image", "label", "pred")}
        return {**seen[number], "case": [f"patient{number}"], "slice": [number]}

    evaluator = Engine(step)
    evaluator.state.metric_details = {"psnr": torch.arange(5) / 10}
    EvaluationPictures(tmp_path, count=2).attach(evaluator)
    evaluator.run(range(5))
    with np.load(tmp_path / "samples.npz") as samples:  # without pickles
        assert set(samples) == {"image", "label", "pred", "case", "slice", "psnr"}
        assert samples["slice"].tolist() == [1, 3]
        assert samples["case"].tolist() == ["patient1", "patient3"]
        assert samples["psnr"] == pytest.approx([0.1, 0.3])
        for name in ("image", "label", "pred"):
            assert samples[name].dtype == np.float32
            for number, image in zip((1, 3), samples[name], strict=True):
                np.testing.assert_array_equal(image, seen[number][name][0, 0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "samples.npz"]


def test_shown_slices_without_a_score(tmp_path):
    evaluate(EvaluationPictures(tmp_path, count=2), 3, 1)
    with np.load(tmp_path / "samples.npz") as samples:
        assert np.isnan(samples["psnr"]).tolist() == [True, True]


def test_each_evaluation_starts_anew(tmp_path, figures):
    handler = EvaluationPictures(tmp_path, count=2)
    for _ in range(2):
        evaluate(handler, 3, 1)
    assert "2 of 3 evaluated slices" in [item.get_text() for item in figures[1].texts]
