"""Settings of speed: what they choose, that they leave the result what it is, and that they fall back with a reason."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.engines import TranslationTrainer, channels_last_pays, in_bfloat16, seed_all
from pipeline.engines.acceleration import Compiled, check_compile
from pipeline.methods import METHODS
from pipeline.studies.cost import make_translator
from pipeline.studies.timing import optimizers


@pytest.mark.parametrize(
    ("precision", "amp", "expected"),
    [("auto", None, False), ("fp32", None, False), ("bf16", None, True), ("auto", True, True), ("bf16", True, True)],
)
def test_precision_on_a_cpu(precision, amp, expected):
    assert in_bfloat16(precision, "cpu", amp) is expected


def test_auto_is_what_a_gpu_can(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert in_bfloat16("auto", "cuda:0") is able
        assert in_bfloat16("auto", "cuda:0", amp=not able) is not able


def test_what_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="precision and amp contradict each other: 'fp32' and True"):
        in_bfloat16("fp32", "cpu", amp=True)
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, got 'half'"):
        in_bfloat16("half", "cpu")
    with pytest.raises(ValueError, match="compile must be one of off, default, reduce-overhead, got 'fast'"):
        check_compile("fast")


def test_channels_last_where_networks_are_narrow():
    narrow, wide = torch.nn.Conv2d(1, 64, 3), torch.nn.Conv2d(64, 256, 3)
    assert channels_last_pays(narrow, "cpu")
    assert not channels_last_pays(torch.nn.Sequential(narrow, wide), "cpu")
    assert not channels_last_pays(narrow, "cuda")
    assert not channels_last_pays(torch.nn.Conv3d(1, 8, 3), "cpu")


def trained(make_translator, batch, weights, steps=2, state=None, **settings):
    translator = make_translator()
    # Plain descent: Adam blows rounding up.
    g = torch.optim.SGD(translator.generator_parameters(), lr=1e-2, momentum=0.5)
    d = torch.optim.SGD(translator.discriminator_parameters(), lr=1e-2, momentum=0.5)
    if state is not None:
        translator.load_state_dict(state[0])
        g.load_state_dict(state[1])
        d.load_state_dict(state[2])
    TranslationTrainer("cpu", 1, [copy.deepcopy(batch)] * steps, translator, g, d, weights, **settings).run()
    return translator.state_dict(), g.state_dict(), d.state_dict()


def test_channels_last_changes_rounding_only(make_translator, batch, reggan_weights):
    plain = trained(make_translator, batch, reggan_weights)
    ours = trained(make_translator, batch, reggan_weights, channels_last=True)
    for name, value in plain[0].items():
        torch.testing.assert_close(ours[0][name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert ours[0]["generator.down.0.conv.weight"].is_contiguous(memory_format=torch.channels_last)
    # A state that was saved with the channels first is gone on with.
    longer = trained(make_translator, batch, reggan_weights, steps=1, state=plain, channels_last=True)
    expected = trained(make_translator, batch, reggan_weights, steps=3)
    for name, value in expected[0].items():
        torch.testing.assert_close(longer[0][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_what_cannot_be_compiled_runs_as_it_is(caplog):
    def broken(*_):
        raise RuntimeError("no compiler here")

    double = Compiled(lambda x: 2 * x, backend=broken)
    assert [double(torch.ones(1)).item() for _ in range(2)] == [2, 2]
    assert "no compiler here" in caplog.text
    assert "no compiler here" in double.reason
    assert caplog.text.count("runs without compile") == 1


def graph_breaks(method):
    """How many graphs each side's terms are traced into, with the reasons for more than one."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    translator, weights = make_translator(method, "small")
    batch = {name: torch.rand(2, 1, 64, 64) * 2 - 1 for name in ("image", "label")}
    trainer = TranslationTrainer("cpu", 1, [batch], translator, *optimizers(translator), weights)
    translator.train()
    trainer._train_discriminator(False)
    drawn = batch | translator.draw(batch)
    found = [torch._dynamo.explain(trainer._generator_terms)(drawn)]
    outputs = {name: output.detach() for name, output in trainer._generator_terms(drawn)[0].items()}
    trainer._train_discriminator(True)
    found.append(torch._dynamo.explain(trainer._discriminator_terms)(batch, dict(translator.shown(outputs))))
    return [(side.graph_count, [str(reason.reason) for reason in side.break_reasons]) for side in found]


SKIPS = pytest.mark.xfail(reason="MONAI's UpCat asks torch.jit.isinstance, which dynamo does not trace", strict=True)


@pytest.mark.parametrize(
    "method",
    [
        "reggan",
        *(
            pytest.param(method, marks=[pytest.mark.slow, *([SKIPS] if "unet" in method else [])])
            for method in METHODS
            if method != "reggan"
        ),
    ],
)
def test_a_step_is_one_graph_a_side(method):
    """Without a break there is no wait for the device in it, either: a break is what reading a value would be."""
    assert graph_breaks(method) == [(1, []), (1, [])]


def test_a_compiled_step_trains_as_the_plain_one_does(make_translator, batch, reggan_weights, monkeypatch):
    compiled = []

    class Traced(Compiled):
        def __init__(self, function, mode):
            super().__init__(function, backend="aot_eager")  # all of the compiler but the generation of code
            compiled.append((self, mode))

    monkeypatch.setattr("pipeline.engines.trainer.Compiled", Traced)
    plain = trained(make_translator, batch, reggan_weights)
    ours = trained(make_translator, batch, reggan_weights, compile="default")
    assert [mode for _, mode in compiled] == ["default"] * 2
    assert all(part.reason is None for part, _ in compiled)
    for name, value in plain[0].items():
        torch.testing.assert_close(ours[0][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_seeds_are_set_and_a_cpu_needs_no_more():
    def draw():
        return torch.rand(3).tolist()

    seed_all(5, "cpu")
    first = draw()
    seed_all(5, "cpu", deterministic=True)
    assert draw() == first
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    seed_all(5, "cpu", deterministic=False)
    assert not torch.backends.cudnn.deterministic
    seed_all(5, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile_", ["off", "reduce-overhead"])
def test_no_step_waits_for_the_gpu(make_translator, batch, reggan_weights, compile_):
    translator = make_translator().cuda()
    loader = [{name: value.cuda() for name, value in batch.items()}]
    sides = translator.generator_parameters(), translator.discriminator_parameters()
    g, d = (torch.optim.Adam(list(parameters), fused=True) for parameters in sides)
    trainer = TranslationTrainer("cuda", 1, loader, translator, g, d, reggan_weights, compile=compile_)
    for _ in range(4):
        trainer._iteration(trainer, loader[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._iteration(trainer, loader[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
