"""What makes training faster or smaller trains to the same quality."""

import pytest
import torch

from atlalign.losses.perceptual import Backbone
from atlalign.training.run import train
from tests.training.conftest import metrics_of

# A run that ends at two thirds of the error of doing nothing: a method that learns half as much shows.
LEARNING = [
    "trainer.max_epochs=24", "data.n_sections=12", "data.fields_per_section=8", "atlas.spacing_um=300",
    "data.batch_size=8", "optimizer=adam", "optimizer.lr=5e-3", "loss=vector_distance", "scheduler=cosine",
    "model.start_filters=[8]", "model.downsample_filters=[16,16]", "model.middle_filters=[16]",
    "model.upsample_filters=[16,16]", "model.end_filters=[16]",
]  # fmt: skip
TOLERANCE = 0.05


@pytest.fixture
def quality(configure, tmp_path):
    def quality(*options: str) -> float:
        """Return the final error relative to no registration."""
        folder = tmp_path / str(len(options))
        train(configure(*LEARNING, *options, run_dir=folder))
        metrics = metrics_of(folder)
        return metrics["val/vector_distance"] / metrics["val/identity/vector_distance"]

    return quality


@pytest.fixture(scope="module")
def plain() -> list[float]:
    """The quality of plain training, once it is known."""
    return []


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["trainer.precision=bf16-mixed"],
        ["trainer.accumulate_grad_batches=2", "data.batch_size=4"],
        ["channels_last=false"],
        ["channels_last=false", "trainer.precision=bf16-mixed"],
        ["compile=true"],
    ],
    ids=" ".join,
)
def test_the_same_quality(quality, plain, options):
    if not plain:
        plain.append(quality())
    assert plain[0] < 0.8
    assert quality(*options) == pytest.approx(plain[0], abs=TOLERANCE)


def test_channels_last_holds_its_memory_format_and_changes_rounding_alone(configure, tmp_path, monkeypatch):
    formats = []

    def note(layer: torch.nn.Conv2d, inputs: object, image: torch.Tensor) -> None:
        if min(image.shape[1:]) > 1:
            formats.append(image.is_contiguous(memory_format=torch.channels_last))

    losses = {}
    for name in ("false", "true", "null"):
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda layer, *rest: note(layer, *rest) if isinstance(layer, torch.nn.Conv2d) else None
        )
        train(configure(f"channels_last={name}", "optimizer=adam", run_dir=tmp_path / name))
        handle.remove()
        losses[name] = metrics_of(tmp_path / name)["val/loss/total"]
        # On a CPU the fastest format is channels last.
        assert all(formats) == (name != "false")
        formats.clear()
    assert losses["null"] == losses["true"]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-3)


def test_the_perceptual_loss_stays_in_float32_under_mixed_precision(configure, tmp_path, monkeypatch):
    seen = set()
    forward = Backbone.forward

    def note(self: Backbone, image: torch.Tensor) -> list[torch.Tensor]:
        maps = forward(self, image)
        seen.update({image.dtype, *(m.dtype for m in maps)}, {p.dtype for p in self.parameters()})
        return maps

    monkeypatch.setattr(Backbone, "forward", note)
    options = ["loss=alex_vdclip2", "loss.backbone_weights=random", "trainer.precision=bf16-mixed"]
    train(configure(*options, "data.image_shape=[32,48]", "trainer.limit_train_batches=1"))
    assert seen == {torch.float32}
