"""Exported graphs: read back by other programs' means they give what the network gives, or there is no file."""

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from atlalign.cli import main
from atlalign.errors import InputError
from atlalign.models import save_model
from atlalign.models.export import FIELD_TOLERANCE_PX, INTENSITY_TOLERANCE, export_model
from atlalign.networks import (
    CoarseToFineNet,
    CorrelationPyramidNet,
    FinePassNet,
    GlobalAffineNet,
    LocalUNet,
    MergedNet,
    Registration,
)

SHAPE = (32, 44)  # the local network crops the width to 40
FIELDS = {"dvf", "inv_dvf", "global_dvf"}


def strong(network: nn.Module) -> nn.Module:
    """Make the fields some pixels large, so that they lead out of the image and an error in sampling is seen."""
    with torch.no_grad():
        if isinstance(network, GlobalAffineNet):
            network.to_affine.bias.copy_(torch.tensor([1.1, 0.1, -3.0, -0.1, 0.9, 2.0]))
            network.to_affine.weight.normal_(std=0.05)
        else:
            network.to_dvf.weight.mul_(30)
    return network


def pyramid(std: float) -> CorrelationPyramidNet:
    """Return a network with random corrections."""
    pyramid = CorrelationPyramidNet((3, 4), (1, 2), (4,), velocity_steps=2, compute_inv=True)
    for decoder in pyramid.decoders:
        torch.nn.init.normal_(decoder[-1].weight, std=std)
    return pyramid


def network(name: str) -> nn.Module:
    if name == "global":
        return strong(GlobalAffineNet((2, 3), (4,), SHAPE))
    if name == "local":
        return strong(LocalUNet((2,), (3, 4, 3), (5,), (4, 4, 4), (3,), compute_inv=True))
    if name == "coarse to fine":
        velocity_net = strong(LocalUNet((2,), (3, 4), (5,), (4,), (3,), compute_inv=True, velocity_steps=2))
        return CoarseToFineNet(velocity_net, (2, 1))
    if name == "correlation pyramid":
        return pyramid(std=0.5)
    if name == "last pass":
        return FinePassNet(pyramid(std=0.2), pyramid(std=0.1), compute_inv=True)
    return MergedNet(network("global"), network("local"), expose_global=True)


def run(path: Path, reference: Tensor, moving: Tensor) -> dict[str, Tensor]:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(reference, moving)
    session = onnxruntime.InferenceSession(path)
    assert [i.shape for i in session.get_inputs()] == [["batch", 1, *SHAPE]] * 2
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {"reference": reference.numpy(), "moving": moving.numpy()})
    return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}


@pytest.mark.parametrize(
    ("name", "outputs", "suffix"),
    [
        ("merged", {"registered", "dvf", "inv_dvf", "global_registered", "global_dvf"}, ".onnx"),
        ("merged", {"registered", "dvf", "inv_dvf", "global_registered", "global_dvf"}, ".pt2"),
        ("coarse to fine", {"registered", "dvf", "inv_dvf"}, ".onnx"),
        ("correlation pyramid", {"registered", "dvf", "inv_dvf"}, ".onnx"),
        pytest.param("last pass", {"registered", "dvf", "inv_dvf"}, ".onnx", marks=pytest.mark.slow),
        # The parts alone, of which the merged one is made.
        pytest.param("global", {"registered", "dvf"}, ".onnx", marks=pytest.mark.slow),
        pytest.param("local", {"registered", "dvf", "inv_dvf"}, ".onnx", marks=pytest.mark.slow),
    ],
)
def test_graph_and_network_agree(name, outputs, suffix, tmp_path):
    original = network(name)
    path = tmp_path / f"graph{suffix}"
    differences = export_model(original, path, SHAPE)
    assert differences.intensity < INTENSITY_TOLERANCE
    assert differences.px < FIELD_TOLERANCE_PX
    assert list(tmp_path.iterdir()) == [path]
    for n_samples in (1, 5):
        reference, moving = torch.rand(2, n_samples, 1, *SHAPE)
        with torch.no_grad():
            expected = original(reference, moving)._asdict()
        found = run(path, reference, moving)
        assert set(found) == outputs
        assert max(output.abs().max() for name, output in found.items() if name in FIELDS) > 3
        for key, output in found.items():
            torch.testing.assert_close(output, expected[key], atol=1e-4, rtol=0)


class Unsteady(nn.Module):
    """Computes something else while it is traced: by 0.01 px, or by 0.01 in intensity."""

    def __init__(self, error_px: float, error_intensity: float) -> None:
        super().__init__()
        self.error_px, self.error_intensity = error_px, error_intensity

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        traced = float(torch.compiler.is_compiling())
        dvf = torch.cat([reference, moving], dim=1) + traced * self.error_px
        return Registration(moving + traced * self.error_intensity, dvf)


@pytest.mark.parametrize(("px", "intensity"), [(0.01, 0), (0, 0.01), (float("nan"), 0)])
def test_a_graph_that_disagrees_gets_no_name(px, intensity, tmp_path):
    with pytest.raises(InputError, match=r"graph\.pt2 was not written: expected .* 0\.001 px, got"):
        export_model(Unsteady(px, intensity), tmp_path / "graph.pt2", SHAPE)
    assert not list(tmp_path.iterdir())
    assert export_model(Unsteady(5e-4, 0), tmp_path / "graph.pt2", SHAPE).px == pytest.approx(5e-4, rel=1e-3)


def test_the_network_is_left_as_it_was(tmp_path):
    original = LocalUNet((), (), (), (), ()).train()
    export_model(original, tmp_path / "graph.pt2", SHAPE)
    assert original.training
    original(*torch.rand(2, 1, 1, *SHAPE)).dvf.sum().backward()


def test_command(tmp_path, capsys):
    model = save_model(GlobalAffineNet((), (), SHAPE), tmp_path / "model.pt")
    assert main(["export", str(model), "--out", str(tmp_path / "a.pt2")]) == 0
    assert "GlobalAffineNet for images of 32×44 px; its output differs by at most" in capsys.readouterr().out
    local = save_model(LocalUNet((), (), (), (), ()), tmp_path / "local.pt")
    assert main(["export", str(local), "--out", str(tmp_path / "b.pt2"), "--image-shape", "20", "30"]) == 0
    images = torch.rand(2, 1, 1, 20, 30)
    assert run(tmp_path / "b.pt2", *images)["dvf"].shape == (1, 2, 20, 30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["local.pt", "--out", "a.pt2"], "give --image-shape HEIGHT WIDTH"),
        (["local.pt", "--out", "a.pt2", "--image-shape", "0", "30"], "at least 2 px, got (0, 30)"),
        (["local.pt", "--out", "a.pt2", "--image-shape", "100000", "100000"], "at most 8 GiB"),
        (["global.pt", "--out", "a.pt2", "--image-shape", "64", "64"], "takes images of 32×44 px, got 64×64"),
        (["global.pt", "--out", "a.tflite"], r"expected a name that ends in .onnx or .pt2"),
        (["none.pt", "--out", "a.pt2"], "there is no model none.pt"),
    ],
)
def test_networks_that_cannot_be_exported_are_reported(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(network("global"), "global.pt")
    save_model(LocalUNet((), (), (), (), ()), "local.pt")
    assert main(["export", *arguments]) == 1
    assert words in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"global.pt", "local.pt"}


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime.*pip install 'atlalign-torch\[export\]'"):
        export_model(network("global"), tmp_path / "graph.onnx", SHAPE)
