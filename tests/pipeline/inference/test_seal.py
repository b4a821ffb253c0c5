"""ONNX files that tell when they are damaged."""

from __future__ import annotations

import random

import onnx
import pytest
import torch

from pipeline.inference import OnnxError, OnnxNetwork
from pipeline.inference.seal import PLACEHOLDER, SEAL, SealError, seal, verify_seal


def write_model(path, **metadata):
    """A file as the exporter's, of a network that adds a half."""
    axes = ["batch", 1, "height", "width"]
    image, pred = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes) for name in ("image", "pred"))
    half = onnx.numpy_helper.from_array(torch.full((1,), 0.5).numpy(), "half")
    nodes = [onnx.helper.make_node("Add", ["image", "half"], ["pred"])]
    graph = onnx.helper.make_graph(nodes, "network", [image], [pred], [half])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    told = {"name": '"half"', "version": '"1"', "target_window": "[0, 5]", "trained_size": "[]", "minimum_size": "1"}
    onnx.helper.set_model_props(model, {**told, SEAL: PLACEHOLDER, **metadata})
    onnx.save(model, path)


@pytest.fixture
def model(tmp_path):
    write_model(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def sealed(model):
    seal(model)
    return model


def test_a_sealed_file_is_verified_and_used(sealed):
    verify_seal(sealed)
    images = torch.rand(2, 1, 3, 4)
    torch.testing.assert_close(OnnxNetwork(sealed)(images), images + 0.5)
    onnx.checker.check_model(onnx.load(sealed), full_check=True)


def test_sealing_changes_the_digits_alone(model):
    before = model.read_bytes()
    seal(model)
    after = model.read_bytes()
    place = before.index(b"0" * 64)
    assert (before[:place], before[place + 64 :]) == (after[:place], after[place + 64 :])
    assert all(digit in b"0123456789abcdef" for digit in after[place : place + 64])
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_any_flipped_bit_is_refused(sealed):
    """Each of the file's, which has a few hundred bytes."""
    content = sealed.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            sealed.write_bytes(damaged)
            with pytest.raises(SealError, match=r"model\.onnx (is damaged|is no ONNX file|has no checksum)"):
                verify_seal(sealed)


def test_other_damage_is_refused(sealed):
    content = sealed.read_bytes()
    draw = random.Random(0)
    damaged = [content[:length] for length in range(len(content))] + [content + b"\0", content + b"\x08\x08"]
    damaged += [content + content, content[1:], content.replace(b"half", b"HALF")]
    damaged += [draw.randbytes(draw.randrange(1, 300)) for _ in range(200)]
    for spoiled in damaged:
        sealed.write_bytes(spoiled)
        with pytest.raises(SealError, match=r"model\.onnx (is damaged|is no ONNX file|has no checksum)"):
            verify_seal(sealed)


def test_damaged_files_are_not_run(sealed):
    content = sealed.read_bytes()
    sealed.write_bytes(content.replace(torch.full((1,), 0.5).numpy().tobytes(), torch.ones(1).numpy().tobytes()))
    with pytest.raises(OnnxError, match=r"model\.onnx is damaged: its content does not have the SHA-256"):
        OnnxNetwork(sealed)


def test_a_file_without_a_seal_is_refused(model):
    """The name within a tensor's or a node's description is none."""
    loaded = onnx.load(model)
    del loaded.metadata_props[:]
    entry = loaded.graph.node[0].metadata_props.add()
    entry.key, entry.value = SEAL, PLACEHOLDER
    onnx.save(loaded, model)
    for use in (seal, verify_seal):
        with pytest.raises(SealError, match=r"model\.onnx has no checksum \(sha256 in its metadata\)"):
            use(model)
    with pytest.raises(OnnxError, match="has no checksum"):
        OnnxNetwork(model)


def test_an_unsealed_placeholder_is_refused(model):
    with pytest.raises(SealError, match="is damaged"):
        verify_seal(model)


@pytest.mark.parametrize("value", ["", '"0"', PLACEHOLDER + " ", "0" * 66])
def test_only_the_placeholder_is_sealed(tmp_path, value):
    path = tmp_path / "model.onnx"
    write_model(path, **{SEAL: value})
    before = path.read_bytes()
    with pytest.raises(SealError, match="64 digits" if len(value) != 66 else "cannot be sealed: expected"):
        seal(path)
    assert path.read_bytes() == before


def test_a_file_is_sealed_once(sealed):
    with pytest.raises(SealError, match=r"model\.onnx cannot be sealed: expected \"0000"):
        seal(sealed)


def test_two_placeholders_are_refused(model):
    loaded = onnx.load(model)
    loaded.metadata_props.append(loaded.metadata_props[-1])
    onnx.save(loaded, model)
    for use in (seal, verify_seal):
        with pytest.raises(SealError, match="its metadata sha256 must be there once"):
            use(model)


def test_a_seal_alone_is_no_network(model):
    loaded = onnx.load(model)
    loaded.ClearField("graph")
    onnx.save(loaded, model)
    seal(model)
    with pytest.raises(OnnxError, match=r"model\.onnx is no ONNX file that ONNX Runtime can read"):
        OnnxNetwork(model)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        verify_seal(tmp_path / "none.onnx")
