"""Checkpoints: a resumed run equals one that never stopped, and files that do not fit are refused."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import torch
from monai.data import DataLoader, Dataset
from torch.utils.data import DistributedSampler

from pipeline.engines import PrepareBatch, TranslationTrainer, linear_decay
from pipeline.handlers.checkpoint import CheckpointHandler
from pipeline.handlers.seeding import EpochSeed
from pipeline.models import CheckpointError, Model, Recipe, load_checkpoint
from transforms import RandDeformationNoised

WEIGHTS = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}


def make_run(
    make_translator,
    folder,
    *,
    recipe=None,
    evaluator=None,
    resume=False,
    max_epochs=4,
    num_workers=0,
    size=6,
    seed=3,
    epoch_length=None,
):
    torch.manual_seed(0)
    pairs = [{"image": torch.rand(1, 32, 32) * 2 - 1, "label": torch.rand(1, 32, 32) * 2 - 1} for _ in range(size)]
    data = Dataset(pairs)
    sampler = DistributedSampler(data, num_replicas=1, rank=0, seed=seed)
    loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=num_workers, generator=torch.Generator())
    translator = make_translator()
    if recipe is not None:
        Recipe(recipe).travel_with(translator)
    g = torch.optim.Adam(translator.generator_parameters(), lr=1e-3)
    d = torch.optim.Adam(translator.discriminator_parameters(), lr=1e-3)
    noise = RandDeformationNoised(keys=("image", "label"), level=3)
    handler = CheckpointHandler(
        folder,
        translator,
        {"generator_optimizer": g, "discriminator_optimizer": d, "schedule": linear_decay(g, 4, 2), "nothing": None},
        evaluator=evaluator,
        resume=resume,
    )
    trainer = TranslationTrainer(
        "cpu",
        max_epochs,
        loader,
        translator,
        g,
        d,
        WEIGHTS,
        prepare_batch=PrepareBatch(noise),
        train_handlers=[EpochSeed(seed, loader, [noise]), handler],
        epoch_length=epoch_length,
    )
    return trainer, translator


def weights(folder, name="last.pt"):
    return load_checkpoint(folder / "checkpoints" / name)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(make_translator, tmp_path, num_workers, assert_same):
    whole, _ = make_run(make_translator, tmp_path / "whole", num_workers=num_workers)
    whole.run()
    stopped, _ = make_run(make_translator, tmp_path / "parts", num_workers=num_workers)

    def stop(engine):
        if engine.state.epoch == 3 and engine.state.iteration % 3 == 2:  # in the middle of the third epoch
            raise KeyboardInterrupt

    from ignite.engine import Events

    stopped.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert weights(tmp_path / "parts")["trainer"]["epoch"] == 2
    torch.rand(7)  # whatever else drew in between
    resumed, _ = make_run(make_translator, tmp_path / "parts", resume=True, num_workers=num_workers)
    resumed.run()
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_resuming_a_finished_run_changes_nothing(make_translator, tmp_path, assert_same):
    make_run(make_translator, tmp_path, max_epochs=2)[0].run()
    before = weights(tmp_path)
    trainer, translator = make_run(make_translator, tmp_path, max_epochs=2, resume=True)
    trainer.run()
    assert trainer.state.epoch == 2
    assert_same(before["network"], dict(translator.state_dict()))


def test_model_file_is_what_inference_loads(make_translator, make_recipe, tmp_path):
    trainer, translator = make_run(make_translator, tmp_path, max_epochs=2, recipe=make_recipe())
    trainer.run()
    source = torch.rand(1, 1, 32, 32)
    for name in ("model.pt", "checkpoints/best.pt", "checkpoints/last.pt"):
        model = Model(tmp_path / name)
        assert torch.equal(model.build()(source), translator(source)), name
        assert model.recipe.spatial_size == (32, 32)
        assert (model.recipe["training"]["epoch"], model.recipe["training"]["iteration"]) == (2, 6)


def test_each_file_says_which_epoch_it_is_of(make_translator, make_recipe, tmp_path):
    """Also where the best is not the last."""
    evaluator = SimpleNamespace(state=SimpleNamespace(best_metric_epoch=2, best_metric=1.0, metrics={}))
    make_run(make_translator, tmp_path, max_epochs=3, recipe=make_recipe(), evaluator=evaluator)[0].run()
    epochs = {}
    for name in ("model.pt", "checkpoints/best.pt", "checkpoints/last.pt"):
        training = Model(tmp_path / name).recipe["training"]
        epochs[name] = training["epoch"], training["iteration"]
    assert epochs == {"model.pt": (2, 6), "checkpoints/best.pt": (2, 6), "checkpoints/last.pt": (3, 9)}


def test_leftovers_of_a_killed_writer_are_removed(make_translator, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/.best.pt", ".model.pt"):
        (tmp_path / f"{name}.{dead.pid}.part").write_bytes(b"half")
    make_run(make_translator, tmp_path, max_epochs=1)[0].run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model.pt"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.pt", "last.pt"]


def test_truncated_file_is_named(make_translator, tmp_path):
    make_run(make_translator, tmp_path, max_epochs=1)[0].run()
    path = tmp_path / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read, it may be cut short"):
        make_run(make_translator, tmp_path, resume=True)[0].run()


def test_other_amount_of_data_is_refused(make_translator, tmp_path):
    make_run(make_translator, tmp_path, max_epochs=1)[0].run()
    with pytest.raises(CheckpointError, match="3 iterations per epoch, now there are 4"):
        make_run(make_translator, tmp_path, resume=True, size=8)[0].run()


def test_checkpoint_of_another_mode_is_refused(make_translator, make_recipe, tmp_path):
    for recipe in (None, make_recipe()):
        make_run(make_translator, tmp_path, max_epochs=1, recipe=recipe)[0].run()
        trainer, _ = make_run(make_translator, tmp_path / "other", max_epochs=1)
        trainer.run()
        with pytest.raises(
            CheckpointError, match=r"as \w+\(adversarial, correction, smoothness\), .* builds \w+\(adversarial\)"
        ):
            CheckpointHandler(tmp_path, make_translator({"adversarial": 1.0}), {}).restore(
                trainer, tmp_path / "checkpoints" / "last.pt"
            )


def test_model_file_has_no_run_to_resume(make_translator, tmp_path):
    make_run(make_translator, tmp_path, max_epochs=1)[0].run()
    trainer, _ = make_run(make_translator, tmp_path / "other", max_epochs=1)
    trainer.run()
    with pytest.raises(CheckpointError, match=r"model\.pt lacks \['network', 'generator_optimizer'"):
        CheckpointHandler(tmp_path, make_translator(), {"generator_optimizer": trainer.generator_optimizer}).restore(
            trainer, tmp_path / "model.pt"
        )


def test_interval_must_be_positive(make_translator, tmp_path):
    with pytest.raises(ValueError, match="at least 1 epoch, got 0"):
        CheckpointHandler(tmp_path, make_translator(), {}, interval=0)


def test_loaders_that_cannot_be_repeated_are_refused():
    data = [torch.zeros(1), torch.zeros(1)]
    with pytest.raises(ValueError, match="no generator"):
        EpochSeed(0, torch.utils.data.DataLoader(data))
    shuffling = torch.utils.data.DataLoader(data, shuffle=True, generator=torch.Generator())
    with pytest.raises(ValueError, match="must be a DistributedSampler, got RandomSampler"):
        EpochSeed(0, shuffling)
