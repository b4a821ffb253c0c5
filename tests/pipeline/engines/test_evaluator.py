"""The evaluator's misalignments: known, repeatable, and registered with the network that was trained for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.engines import TranslationEvaluator
from pipeline.metrics import case_metrics
from transforms import RandDeformationNoised, true_displacement

SIZE = 48


def make_batches(sizes=(3, 2)):
    """Aligned pairs of a textured disc."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij"))
    inside = grid.square().sum(0) < 0.6
    batches = []
    for number, size in enumerate(sizes):
        texture = torch.rand(size, 1, SIZE, SIZE, generator=generator)
        label = torch.where(inside, texture - 0.5, -1.0)
        image = torch.where(inside, 0.5 - texture, -1.0)
        batches.append({"image": image, "label": label, "case": [f"p{number}"] * size, "slice": list(range(size))})
    return batches


def make_evaluator(translator, level=3, kind="affine", registration=True, **settings):
    noise = RandDeformationNoised(level=level, kind=kind, return_displacement=True)
    metrics = case_metrics(("psnr",), ("pred",), registration=registration)
    key_metric = {"psnr": metrics["psnr"]}
    settings = {"noise": noise, "key_val_metric": key_metric, "additional_metrics": metrics, **settings}
    return TranslationEvaluator("cpu", make_batches(), translator, **settings)


class KnownField(nn.Module):
    """In place of a registration network: a multiple of the true field of what was drawn last."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.noise = None

    def forward(self, moving, fixed):
        drawn = self.noise.deformations
        return self.factor * true_displacement(drawn["image"], drawn["label"], fixed.shape[2:])


@pytest.mark.parametrize("kind", ["affine", "nonaffine"])
@pytest.mark.parametrize("factor", [1.0, 0.0, 0.5])
def test_known_fields_have_the_error_they_should(make_translator, factor, kind):
    translator = make_translator()
    translator.registration = KnownField(factor)
    evaluator = make_evaluator(translator, level=5, kind=kind)
    translator.registration.noise = evaluator.noise
    evaluator.run()
    details = evaluator.state.metric_details
    assert evaluator.state.metrics["identity_endpoint_error"] > 1
    torch.testing.assert_close(
        details["endpoint_error"], (1 - factor) * details["identity_endpoint_error"], atol=1e-5, rtol=1e-5
    )
    assert (details["folded"] == 0).all()


def test_level_0_leaves_nothing_to_register(make_translator):
    evaluator = make_evaluator(make_translator(), level=0)
    evaluator.run()
    assert (evaluator.state.metric_details["identity_endpoint_error"] == 0).all()


def test_misalignments_are_the_same_each_time_and_leave_no_trace(make_translator):
    noise = RandDeformationNoised(level=3, return_displacement=True)
    noise.set_random_state(seed=7)
    drawn = RandDeformationNoised(level=3)
    drawn.set_random_state(seed=7)
    evaluator = make_evaluator(make_translator(), noise=noise)
    evaluator.run()
    first = {name: values.clone() for name, values in evaluator.state.metric_details.items()}
    evaluator.run()
    for name, values in evaluator.state.metric_details.items():
        assert torch.equal(values, first[name]), name
    other = make_evaluator(make_translator())
    other.run()
    assert torch.equal(other.state.metric_details["identity_endpoint_error"], first["identity_endpoint_error"])
    pair = {name: torch.rand(1, 1, SIZE, SIZE) for name in ("image", "label")}
    assert torch.equal(noise(dict(pair))["label"], drawn(dict(pair))["label"])


def test_output_is_the_registration_of_the_misaligned_pair(make_translator):
    translator = make_translator()
    evaluator = make_evaluator(translator)
    evaluator.run()
    output, noise = evaluator.state.output, evaluator.noise
    batch = make_batches()[-1]
    misaligned = noise.noise.apply(batch["label"], noise.deformations["label"])
    source = noise.noise.apply(batch["image"], noise.deformations["image"])
    assert torch.equal(output["misaligned"], misaligned)
    assert torch.equal(output["label"], batch["label"])  # the translation is scored on the aligned pair
    with torch.no_grad():
        translator.eval()
        assert torch.equal(output["ddf"], translator.register(translator(source), misaligned)[1])


@pytest.mark.parametrize("weights", [{"adversarial": 1.0}, {}])
def test_nothing_is_registered_without_a_network_for_it(make_translator, weights):
    evaluator = make_evaluator(make_translator(weights), registration=False)
    evaluator.run()
    assert not {"misaligned", "ddf", "true_ddf"} & set(evaluator.state.output)
    assert set(evaluator.state.metrics) == {"psnr"}


def test_nothing_is_registered_without_noise(make_translator):
    evaluator = make_evaluator(make_translator(), registration=False, noise=None)
    evaluator.run()
    assert "ddf" not in evaluator.state.output


def test_noise_that_hides_its_displacement_is_refused(make_translator):
    with pytest.raises(ValueError, match="must be made with return_displacement=True"):
        make_evaluator(make_translator(), noise=RandDeformationNoised(level=3))
