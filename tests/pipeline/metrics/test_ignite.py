"""The scores as Ignite metrics: uneven batches, case order, MONAI's evaluator, several processes."""

from __future__ import annotations

import math
import os
import socket

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.engines import SupervisedEvaluator

from pipeline.metrics import (
    CaseMetric,
    RegistrationMetric,
    case_metrics,
    folded_fraction,
    foreground_mask,
    high_frequency_ratio,
    mutual_information,
    nmae,
    psnr,
    ssim,
)


def make_outputs(sizes=(4, 3, 1), seed=0):
    """Outputs of an evaluator over uneven batches."""
    generator = torch.Generator().manual_seed(seed)
    outputs = []
    for size in sizes:
        label = torch.rand(size, 1, 16, 16, generator=generator) * 2 - 1
        label[..., :4] = -1
        noise = torch.randn(label.shape, generator=generator)
        outputs.append({"label": label, "pred": label + 0.1 * noise, "source": label + 0.5 * noise})
    return outputs


def run(metrics, outputs, epochs=1):
    engine = Engine(lambda engine, batch: batch)
    for name, metric in metrics.items():
        metric.attach(engine, name)
    return engine.run(outputs, max_epochs=epochs)


def joined(outputs, key):
    return torch.cat([output[key] for output in outputs])


def test_mean_over_cases_not_over_batches():
    outputs = make_outputs()
    pred, label = joined(outputs, "pred"), joined(outputs, "label")
    expected = psnr(pred, label, data_range=2, mask=foreground_mask(label))
    state = run({"psnr": CaseMetric("psnr")}, outputs)
    assert isinstance(state.metrics["psnr"], float)
    assert state.metrics["psnr"] == pytest.approx(expected.mean().item(), rel=1e-6)
    torch.testing.assert_close(state.metric_details["psnr"], expected)
    assert state.metric_details["psnr"].device.type == "cpu"


def test_names_candidates_and_masks_of_case_metrics():
    outputs = make_outputs()
    metrics = case_metrics(("psnr", "ssim", "nmae"), ("pred", "source"))
    assert list(metrics) == ["psnr", "ssim", "nmae", "source_psnr", "source_ssim", "source_nmae"]
    state = run(metrics, outputs)
    label = joined(outputs, "label")
    for prefix, key in (("", "pred"), ("source_", "source")):
        image, mask = joined(outputs, key), foreground_mask(label)
        for name, values in (
            ("psnr", psnr(image, label, data_range=2, mask=mask)),
            ("nmae", nmae(image, label, data_range=2, mask=mask)),
            ("ssim", ssim(image, label, data_range=2)),  # the paper's, over the whole image
        ):
            torch.testing.assert_close(state.metric_details[prefix + name], values)
    assert state.metrics["psnr"] > state.metrics["source_psnr"]
    assert "intensity_map_nmae" in case_metrics()


def test_mask_can_be_chosen():
    outputs = make_outputs()
    pred, label = joined(outputs, "pred"), joined(outputs, "label")
    state = run({"all": CaseMetric("nmae", masked=False), "ssim": CaseMetric("ssim", masked=True)}, outputs)
    torch.testing.assert_close(state.metric_details["all"], nmae(pred, label, data_range=2))
    torch.testing.assert_close(
        state.metric_details["ssim"], ssim(pred, label, data_range=2, mask=foreground_mask(label))
    )


def test_extra_scores_and_what_they_compare_with():
    """Information is shared with the source, detail is the target's; both over the target's foreground."""
    outputs = [{**output, "image": -output["label"].square()} for output in make_outputs()]
    metrics = case_metrics(
        ("psnr",), ("pred",), extra={"source_information": ("pred", "label"), "high_frequency": ("pred",)}
    )
    assert list(metrics) == ["psnr", "source_information", "label_source_information", "high_frequency"]
    details = run(metrics, outputs).metric_details
    image, label, pred = (joined(outputs, key) for key in ("image", "label", "pred"))
    where = {"data_range": 2, "mask": foreground_mask(label)}
    torch.testing.assert_close(details["source_information"], mutual_information(pred, image, **where))
    torch.testing.assert_close(details["label_source_information"], mutual_information(label, image, **where))
    torch.testing.assert_close(details["high_frequency"], high_frequency_ratio(pred, label, **where))


def test_reference_can_be_chosen():
    outputs = make_outputs()
    state = run({"difference": CaseMetric("nmae", reference="source")}, outputs)
    label = joined(outputs, "label")
    expected = nmae(joined(outputs, "pred"), joined(outputs, "source"), data_range=2, mask=foreground_mask(label))
    torch.testing.assert_close(state.metric_details["difference"], expected)


def make_fields():
    """Two cases in 8x8: an error of 5 voxels everywhere, and one of 1 voxel of which half points outside."""
    misaligned = torch.ones(3, 1, 8, 8)
    misaligned[0, :, 4:] = -1
    misaligned[2] = -1
    true_ddf = torch.zeros(3, 2, 8, 8)
    true_ddf[1, 0] = torch.tensor([1.0, 4.0]).repeat_interleave(4)[:, None]  # the lower half points outside
    ddf = true_ddf.clone()
    ddf[0, 0, :4] += 3
    ddf[0, 1, :4] -= 4
    ddf[1, 0, :4] += 1
    ddf[1, 0, 4:] += 100
    return {"misaligned": misaligned, "true_ddf": true_ddf, "ddf": ddf}


def test_registration_counts_the_foreground_that_has_a_counterpart():
    metrics = case_metrics((), registration=True)
    assert list(metrics) == ["endpoint_error", "identity_endpoint_error", "folded"]
    state = run(metrics, [make_fields()])
    details = state.metric_details
    torch.testing.assert_close(details["endpoint_error"], torch.tensor([5.0, 1.0, math.nan]), equal_nan=True)
    torch.testing.assert_close(details["identity_endpoint_error"], torch.tensor([0.0, 1.0, math.nan]), equal_nan=True)
    torch.testing.assert_close(details["folded"], folded_fraction(make_fields()["ddf"]))
    assert state.metrics["endpoint_error"] == 3  # the case without foreground does not count
    assert "endpoint_error" not in case_metrics()


def test_diverged_registration_shows_in_the_mean():
    fields = make_fields()
    fields["ddf"][0, 0, 1, 1] = math.nan
    assert math.isnan(run({"endpoint_error": RegistrationMetric("endpoint_error")}, [fields]).metrics["endpoint_error"])


def test_score_may_be_a_function():
    def worst(pred, target, *, data_range, mask):
        return torch.where(mask, (pred - target).abs(), 0).flatten(1).amax(1) / data_range

    outputs = make_outputs()
    state = run({"worst": CaseMetric(worst, candidate="source")}, outputs)
    assert state.metric_details["worst"].shape == (8,)
    assert state.metrics["worst"] == pytest.approx(state.metric_details["worst"].mean().item())


def test_each_epoch_starts_anew():
    outputs = make_outputs()
    assert run({"psnr": CaseMetric("psnr")}, outputs, epochs=3).metric_details["psnr"].shape == (8,)


def test_case_without_foreground_is_left_out_of_the_mean():
    outputs = make_outputs()
    outputs[1]["label"][1] = -1
    details = run({"psnr": CaseMetric("psnr")}, outputs)
    values = details.metric_details["psnr"]
    assert values.isnan().tolist() == [False] * 5 + [True] + [False] * 2
    assert details.metrics["psnr"] == pytest.approx(values[~values.isnan()].mean().item())


def test_diverged_prediction_shows_in_the_mean():
    outputs = make_outputs()
    outputs[0]["pred"][0, 0, 8, 8] = math.nan
    state = run({"psnr": CaseMetric("psnr")}, outputs)
    assert math.isnan(state.metrics["psnr"])
    assert state.metric_details["psnr"].isnan().sum() == 1


def test_perfect_prediction_is_infinite():
    outputs = [{"label": output["label"], "pred": output["label"]} for output in make_outputs()]
    assert run({"psnr": CaseMetric("psnr")}, outputs).metrics["psnr"] == math.inf


def test_with_monais_evaluator():
    batches = [{"image": output["source"], "label": output["label"]} for output in make_outputs()]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=torch.nn.Identity(),
        key_val_metric={"psnr": CaseMetric("psnr")},
        additional_metrics={"nmae": CaseMetric("nmae")},
        decollate=False,
    )
    evaluator.run()
    evaluator.run()
    label, image = joined(batches, "label"), joined(batches, "image")
    expected = psnr(image, label, data_range=2, mask=foreground_mask(label))
    assert evaluator.state.metrics["psnr"] == pytest.approx(expected.mean().item(), rel=1e-6)
    assert evaluator.state.best_metric == evaluator.state.metrics["psnr"]
    assert {name: values.shape for name, values in evaluator.state.metric_details.items()} == {
        "psnr": (8,),
        "nmae": (8,),
    }


@pytest.mark.parametrize("score", ["psnr", "ssim", "nmae", "source_information", "high_frequency"])
def test_updating_never_waits_for_the_device(score):
    metric = CaseMetric(score)
    image = torch.empty(2, 1, 16, 16, device="meta")
    metric.update((image, image, image))


def test_refusals():
    with pytest.raises(
        ValueError,
        match=r"score must be a function or one of nmae, .*, high_frequency, linear_psnr, mae, got 'psrn'",
    ):
        CaseMetric("psrn")
    with pytest.raises(KeyError, match="no 'intensity_map' to score; it holds label, pred, source"):
        run({"m": CaseMetric("psnr", candidate="intensity_map")}, make_outputs())
    with pytest.raises(NotComputableError, match="has seen no case"):
        CaseMetric("psnr").compute()
    with pytest.raises(ValueError, match=r"score must be one of endpoint_error, .* folded, got 'epe'"):
        RegistrationMetric("epe")
    with pytest.raises(KeyError, match="no 'ddf' to score"):
        run({"m": RegistrationMetric("folded")}, make_outputs())


def score_in_a_group(rank, port, path):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    outputs = make_outputs((4, 3, 1))
    state = run({"psnr": CaseMetric("psnr")}, outputs[:2] if rank == 0 else outputs[2:])
    torch.save({"mean": state.metrics["psnr"], "cases": state.metric_details["psnr"]}, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_cases_of_other_processes_count(monkeypatch):
    outputs = make_outputs((4, 3, 1))
    other = CaseMetric("psnr")
    other.update((outputs[2]["pred"], outputs[2]["label"], outputs[2]["label"]))
    monkeypatch.setattr(
        "pipeline.metrics.ignite.evenly_divisible_all_gather", lambda rows: torch.cat([rows, *other._batches])
    )
    state = run({"psnr": CaseMetric("psnr")}, outputs[:2])
    monkeypatch.undo()
    alone = run({"psnr": CaseMetric("psnr")}, outputs)
    assert torch.equal(state.metric_details["psnr"], alone.metric_details["psnr"])
    assert state.metrics["psnr"] == alone.metrics["psnr"]


@pytest.mark.slow
def test_uneven_processes_see_all_cases(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(score_in_a_group, (port, str(tmp_path)), nprocs=2)
    alone = run({"psnr": CaseMetric("psnr")}, make_outputs((4, 3, 1)))
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt")
        assert shared["mean"] == pytest.approx(alone.metrics["psnr"], rel=1e-6)
        torch.testing.assert_close(shared["cases"], alone.metric_details["psnr"])


def test_what_is_the_same_in_every_epoch_is_scored_in_the_first():
    outputs, scored = make_outputs(), []

    def score(candidate, reference, **options):
        scored.append(len(candidate))
        return psnr(candidate, reference, **options)

    metrics = {"psnr": CaseMetric(score), "source_psnr": CaseMetric(score, "source", once=True)}
    engine = Engine(lambda engine, batch: batch)
    for name, metric in metrics.items():
        metric.attach(engine, name)
    first = engine.run(outputs)
    means, details = dict(first.metrics), dict(first.metric_details)
    assert scored == [4, 4, 3, 3, 1, 1]
    for _ in range(2):
        engine.run(outputs)
    assert scored == [4, 4, 3, 3, 1, 1] + 2 * [4, 3, 1]
    assert engine.state.metrics == means
    for name, values in details.items():
        assert torch.equal(engine.state.metric_details[name], values), name
    others = make_outputs((2, 3), seed=1)
    engine.run(others)
    fresh = run({"source_psnr": CaseMetric(score, "source")}, others)
    assert torch.equal(engine.state.metric_details["source_psnr"], fresh.metric_details["source_psnr"])


def test_baselines_of_a_training_are_scored_once():
    metrics = case_metrics(once=("source", "intensity_map"))
    assert {name for name, metric in metrics.items() if metric.once} == {
        f"{candidate}_{score}" for candidate in ("source", "intensity_map") for score in ("psnr", "ssim", "nmae")
    }
