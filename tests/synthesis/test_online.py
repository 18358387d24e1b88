"""Samples drawn while training: exact truth, reproducible from seeds, and validation on planes that never train."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose as compose_config
from hydra import initialize_config_dir
from torch.utils.data import default_collate

from atlalign.atlas.atlas import phantom_atlas
from atlalign.data.augmenters import augmenter_1, kornia_1
from atlalign.data.dataset import SeededSampler
from atlalign.declarations import interface
from atlalign.errors import InputError
from atlalign.geometry import warp
from atlalign.geometry.random_fields import INVERTIBLE_FIELDS
from atlalign.synthesis import online
from atlalign.synthesis.contrast import draw_contrast
from atlalign.synthesis.damage import draw_damage
from atlalign.synthesis.online import (
    DrawnSample,
    OnlineDataModule,
    TrainingDraws,
    hold_out,
)
from atlalign.training.run import train

CONF = Path(__file__).parents[2] / "conf"
SHAPE = (96, 136)
INNER = (..., slice(12, -12), slice(16, -16))


@pytest.fixture(scope="module")
def brain():
    return phantom_atlas(image_shape=SHAPE, spacing_um=300.0)


def module(brain, **arguments) -> OnlineDataModule:
    defaults = {
        "image_shape": SHAPE, "batch_size": 4, "samples_per_epoch": 8, "n_val": 6, "contrast": draw_contrast,
        "return_inverse": True,
    }  # fmt: skip
    datamodule = OnlineDataModule(atlas=brain, **{**defaults, **arguments})
    datamodule.setup()
    return datamodule


def first_batch(datamodule, loader):
    return datamodule.complete(next(iter(loader)))


# --- batches


@pytest.mark.parametrize("deformation", INVERTIBLE_FIELDS)
def test_the_true_field_brings_the_moving_image_to_the_section_that_it_was_made_from(
    brain, deformation, monkeypatch
):
    made = []
    original = online._section
    monkeypatch.setattr(online, "_section", lambda *arguments: made.append(original(*arguments)) or made[-1])
    smooth_light = functools.partial(draw_contrast, noise=(0, 0.01), texture=(0, 0.02), blur_px=(1, 1.5))
    datamodule = module(brain, deformation=deformation, contrast=smooth_light)
    batch = first_batch(datamodule, datamodule.train_dataloader())
    (section,) = made
    after = (warp(batch.moving, batch.dvf) - section)[INNER].abs().mean()
    before = (batch.moving - section)[INNER].abs().mean()
    assert after < 0.01
    assert 3 * after < before
    back = (warp(section, batch.inv_dvf, padding_mode="border") - batch.moving).abs().max()
    assert back < 1e-5
    torch.testing.assert_close(batch.registered, warp(batch.moving, batch.dvf))


def test_the_reference_is_the_template_and_the_ids_are_those_of_the_plane(brain):
    datamodule = module(brain)
    batch = first_batch(datamodule, datamodule.val_dataloader())
    for i, position in enumerate(batch.position_um.tolist()):
        assert torch.equal(batch.reference[i], brain.section(position))
        assert int(batch.image_id[i]) == int(brain.plane_index(position))
    assert set(batch.image_id.tolist()) <= set(datamodule.val_planes.tolist())
    assert not batch.dataset_id.any()


def test_without_contrast_the_section_is_the_template(brain):
    datamodule = module(brain, contrast=None, return_inverse=False)
    batch = first_batch(datamodule, datamodule.train_dataloader())
    assert (batch.registered - batch.reference)[INNER].abs().mean() < 0.02
    assert batch.inv_dvf is None


def test_a_sample_is_its_plane_and_seed_whatever_else_is_in_the_batch(brain):
    datamodule = module(brain, deformation="affine_smooth")
    together = first_batch(datamodule, datamodule.val_dataloader())
    alone = datamodule.complete(default_collate([datamodule.val_dataset[2]]))
    for one, all_of_them in zip(alone, together, strict=True):
        torch.testing.assert_close(one, all_of_them[2:3], atol=2e-3, rtol=1e-4)


def test_epochs_differ_in_training_and_not_in_validation(brain):
    datamodule = module(brain)
    draws = {}
    for name in ("train", "val"):
        loader = getattr(datamodule, f"{name}_dataloader")()
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            seeds = torch.cat([batch["contrast"].seed for batch in loader]).flatten().tolist()
            planes = torch.cat([batch["image_id"] for batch in loader]).tolist()
            draws[name, epoch] = list(zip(planes, seeds, strict=True))
    assert draws["val", 0] == draws["val", 1]
    assert not set(draws["train", 0]) & set(draws["train", 1])
    assert len(set(draws["train", 0])) == 8
    again = module(brain).train_dataloader()
    again.sampler.set_epoch(1)
    seeds = torch.cat([batch["contrast"].seed for batch in again]).flatten().tolist()
    assert seeds == [seed for _, seed in draws["train", 1]]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_and_main_process_draw_the_same(brain, context):
    whole = {"damage": draw_damage, "position_error_um": 300.0}
    alone = module(brain, **whole)
    workers = module(brain, num_workers=2, multiprocessing_context=context, **whole)
    pairs = zip(workers.val_dataloader(), alone.val_dataloader(), strict=True)
    for one, other in [(workers.complete(raw), alone.complete(plain)) for raw, plain in pairs]:
        assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))


def test_split_seed_decides_validation_and_seed_training(brain):
    def moving(**seeds: int) -> dict[str, torch.Tensor]:
        datamodule = module(brain, **seeds)
        return {"train": first_batch(datamodule, datamodule.train_dataloader()).moving,
                "val": datamodule.examples(3).moving}  # fmt: skip

    first, again = moving(seed=0, split_seed=0), moving(seed=0, split_seed=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = moving(seed=1, split_seed=0)
    assert torch.equal(first["val"], other["val"])
    assert not torch.equal(first["train"], other["train"])
    assert not torch.equal(first["val"], moving(seed=0, split_seed=1)["val"])


def test_examples_are_spread_over_the_validation_planes(brain):
    datamodule = module(brain, n_val=20)
    planes = datamodule.examples(3).image_id.tolist()
    assert planes[0] == datamodule.val_planes.min()
    assert planes[2] == datamodule.val_planes.max()
    assert planes[0] < planes[1] < planes[2]


def test_batched_augmenters_change_moving_image_and_what_it_is_registered_to(brain):
    datamodule = module(brain, augment={"moving": kornia_1(p=1.0)})
    raw = next(iter(datamodule.train_dataloader()))
    plain = datamodule.complete(raw)
    changed = datamodule.complete(raw, moving_augmenter=datamodule.augmenters["moving"])
    assert torch.equal(plain.reference, changed.reference)
    assert not torch.equal(plain.moving, changed.moving)
    torch.testing.assert_close(changed.registered, warp(changed.moving, changed.dvf))


# --- what real sections are like


def val_batch(brain, **arguments):
    datamodule = module(brain, **{"samples_per_epoch": 64, **arguments})
    return first_batch(datamodule, datamodule.val_dataloader())


def test_numbers_without_options_are_unchanged(brain):
    batch = val_batch(brain)
    torch.testing.assert_close(batch.moving.mean(), torch.tensor(0.4071), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.moving[1, 0, 40, 60], torch.tensor(0.5055), atol=1e-3, rtol=0)
    torch.testing.assert_close(batch.dvf[2, 1, 40, 60], torch.tensor(-5.5442), atol=1e-2, rtol=0)
    assert batch.position_um.tolist() == [4200, 4500, 6900, 9000]
    off = val_batch(brain, damage=draw_damage, p_half_reference=1.0)
    for one, other in zip(batch, off, strict=True):
        assert torch.equal(one, other)


def test_with_an_error_in_position_the_reference_alone_is_another_plane(brain):
    plain, moved = (val_batch(brain, n_val=32, batch_size=32, position_error_um=e) for e in (0, 1000))
    for name in ("moving", "registered", "dvf", "inv_dvf", "image_id"):
        assert torch.equal(getattr(plain, name), getattr(moved, name)), name
    for i, position in enumerate(moved.position_um.tolist()):
        assert torch.equal(moved.reference[i], brain.section(position))
    error = (moved.position_um - plain.position_um).float()
    assert error.abs().max() <= 1000 + 300 / 2
    assert error.std() == pytest.approx(1000 / 3**0.5, rel=0.3)
    assert error.mean().abs() < 400


def test_positions_name_the_reference_whatever_the_spacing(brain):
    atlas = replace(brain, spacing_um=10.4)
    batch = val_batch(atlas, n_val=32, batch_size=32, position_error_um=50, n_val_blocks=1)
    for image, position in zip(batch.reference, batch.position_um.tolist(), strict=True):
        assert torch.equal(image, atlas.section(position))


def test_the_reference_stays_within_the_atlas(brain):
    positions = val_batch(brain, position_error_um=1e6, n_val=16, batch_size=16).position_um
    assert set(positions.tolist()) == {0, 13200 - 300}


def test_damage_changes_the_section_where_it_lies_and_nothing_of_the_truth(brain):
    damage = functools.partial(draw_damage, p_holes=1.0, hole_share=(0.2, 0.2))
    plain, damaged = val_batch(brain), val_batch(brain, damage=damage)
    for name in ("reference", "dvf", "inv_dvf", "position_um"):
        assert torch.equal(getattr(plain, name), getattr(damaged, name)), name
    changed = ((plain.moving - damaged.moving).abs() > 0.02).float().mean((1, 2, 3))
    assert changed.min() > 0.01
    assert changed.max() < 0.4
    torch.testing.assert_close(damaged.registered, warp(damaged.moving, damaged.dvf))


def test_missing_tissue_is_black_without_contrast(brain):
    plain = val_batch(brain, contrast=None)
    damaged = val_batch(brain, contrast=None, damage=functools.partial(draw_damage, p_half=1.0))
    left, right = damaged.moving[..., :50], damaged.moving[..., -50:]
    assert all((one == 0).all() != (other == 0).all() for one, other in zip(left, right, strict=True))
    assert torch.equal(plain.reference, damaged.reference)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_reference_of_a_half_is_halved_on_the_same_side(brain, p):
    half = functools.partial(draw_damage, p_half=1.0)
    batch = val_batch(brain, contrast=None, damage=half, p_half_reference=p)
    plain = val_batch(brain).reference
    for reference, moving, whole in zip(batch.reference, batch.moving, plain, strict=True):
        missing = slice(0, 68) if moving[..., :50].sum() < moving[..., -50:].sum() else slice(68, None)
        expected = whole.clone()
        expected[..., missing] *= 1 - p
        assert torch.equal(reference, expected)


def test_mirrored_images_are_mirrored_together_and_registered_by_the_same_truth(brain):
    # Not symmetric, so that a reference that is not mirrored shows.
    template = brain.template.clone()
    template[..., :68] //= 2
    lopsided = replace(brain, template=template)
    plain, mirrored = (val_batch(lopsided, contrast=None, p_mirrored=p) for p in (0.0, 1.0))
    assert torch.equal(mirrored.reference, plain.reference.flip(-1))
    assert torch.equal(mirrored.dvf, plain.dvf)
    for batch in (plain, mirrored):
        assert (batch.registered - batch.reference)[INNER].abs().mean() < 0.02
    some = val_batch(lopsided, contrast=None, p_mirrored=0.5, n_val=16, batch_size=16).reference
    brighter = some[..., :68].sum((1, 2, 3)) > some[..., 68:].sum((1, 2, 3))
    assert brighter.unique().tolist() == [False, True]


# --- which planes


def test_validation_is_blocks_of_neighbours_apart_from_all_that_trains():
    planes = np.arange(50, 450)
    for seed in range(5):
        train_planes, val = hold_out(planes, val_fraction=0.2, n_blocks=4, margin=4, seed=seed)
        assert len(val) == 80
        starts = np.flatnonzero(np.diff(val, prepend=-9) > 1)
        assert np.diff(starts, append=80).min() >= 20  # two blocks may touch
        assert [(val >= first).sum() - (val >= first + 100).sum() for first in range(50, 450, 100)] == [
            20
        ] * 4
        assert np.abs(train_planes[:, None] - val).min() == 5
        assert len(train_planes) >= 400 - 80 - 4 * 8
    assert not np.array_equal(val, hold_out(planes, val_fraction=0.2, n_blocks=4, margin=4, seed=9)[1])


def test_training_draws_from_all_its_planes_and_no_others():
    planes = np.array([3, 4, 8])
    draws = TrainingDraws(lambda plane, _: DrawnSample(image_id=torch.tensor(plane)), planes, 300)
    seen = [int(draws[key]["image_id"]) for key in SeededSampler(range(300), seed=0, shuffle=True)]
    assert set(seen) == {3, 4, 8}
    assert min(seen.count(plane) for plane in planes) > 70


def test_positions_outside_of_the_range_are_not_used(brain):
    datamodule = module(brain, position_range_um=[4000, 9000])
    planes = np.concatenate([datamodule.train_planes, datamodule.val_planes])
    assert planes.min() * 300 >= 4000
    assert planes.max() * 300 <= 9000
    assert len(np.unique(planes)) == len(planes) >= 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deformation": "smoth"}, "'smoth'.* smooth"),
        ({"samples_per_epoch": 0}, "data.samples_per_epoch: expected at least 1, got 0"),
        ({"samples_per_epoch": 3}, "data.batch_size: expected at least 4 .* found data.samples_per_epoch=3"),
        ({"n_val": 0}, "data.n_val: expected at least 1"),
        ({"val_fraction": 1.0}, "data.val_fraction: expected a share"),
        ({"n_val_blocks": 40}, "data.n_val_blocks: .* 80 planes .* 40 blocks"),
        ({"mean_fraction": (0.03, 0.01)}, r"data.mean_fraction: expected \[from, to\]"),
        ({"largest_fraction": (0.03, 0.19)}, "data.largest_fraction: .* ≤ 0.15, got"),
        ({"largest_fraction": (0.03, 0.3), "deformation": "affine"}, "data.largest_fraction: .* ≤ 0.2, got"),
        ({"p_mirrored": 2.0}, r"data.p_mirrored: expected a probability"),
        ({"p_half_reference": -1.0}, r"data.p_half_reference: expected a probability"),
        ({"position_error_um": -1.0}, "data.position_error_um: expected at least 0"),
        ({"damage": functools.partial(draw_damage, p_cut=7)}, "damage.p_cut: expected a probability"),
        ({"contrast": functools.partial(draw_contrast, noise=(2, 1))}, "contrast.noise: expected"),
        ({"spacing": 0.0}, "data.spacing: expected 0.05 to 1"),
        ({"position_range_um": [0, 99999]}, "data.position_range_um: .* ≤ 13200, got"),
        ({"position_range_um": 5000}, r"data.position_range_um: expected \[from, to\] .*, got 5000"),
        ({"mean_fraction": 0.03}, r"data.mean_fraction: expected \[from, to\] .*, got 0.03"),
        ({"mean_fraction": "ab"}, r"data.mean_fraction: expected \[from, to\] .*, got \['a', 'b'\]"),
        ({"split_seed": -1}, "data.split_seed: expected at least 0, got -1"),
        ({"image_shape": 64}, r"data.image_shape: expected \(H, W\), .*, got 64"),
        ({"image_shape": (32, 48)}, "data.image_shape: expected .*96, 136.*32, 48"),
        ({"augment": {"moving": augmenter_1()}}, "augment.moving: .* augment=kornia_1"),
    ],
)
def test_bad_arguments(brain, arguments, message):
    with pytest.raises(InputError, match=message):
        module(brain, **arguments)


def test_missing_annotation_error_explains_the_remedy():
    atlas = phantom_atlas(image_shape=SHAPE, spacing_um=1100.0, with_annotation=False)
    with interface("keys"), pytest.raises(InputError) as error:
        module(atlas)
    for option in ("atlas.annotation_path=FILE", "atlas.with_annotation=true", "data.contrast=null"):
        assert option in str(error.value)


# --- as it is typed


def configured(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_config("train", ["data=online", *overrides])


@pytest.mark.parametrize("atlas", ["phantom", "allen", "file"])
def test_the_configuration_asks_the_atlas_for_its_annotation(atlas):
    assert configured(f"atlas={atlas}").atlas.with_annotation is True
    assert configured(f"atlas={atlas}", "atlas.with_annotation=false").atlas.with_annotation is False


def tiny(run_dir: Path, *overrides: str):
    return configured(
        "data.image_shape=[32,48]", "data.samples_per_epoch=4", "data.n_val=2", "data.batch_size=2",
        "atlas.spacing_um=600", "trainer=cpu", "trainer.max_epochs=2", "trainer.enable_progress_bar=false",
        "callbacks.progress=null", "callbacks.summary=null", "callbacks.figure=null", "logger=none",
        "model.start_filters=[4]", "model.downsample_filters=[4,4]", "model.middle_filters=[4]",
        "model.upsample_filters=[4,4]", "model.end_filters=[4]", "augment=kornia_1", f"run_dir={run_dir}",
        *overrides,
    )  # fmt: skip


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_training_runs_and_a_resumed_one_sees_the_same_numbers(tmp_path):
    train(tiny(tmp_path / "whole"))
    train(tiny(tmp_path / "halves", "trainer.max_epochs=1"))
    half = weights(tmp_path / "halves")
    train(tiny(tmp_path / "halves", "ckpt_path=last"))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], half[name]) for name in whole)
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["val/identity/vector_distance"] > 0.01 * 47


@pytest.mark.gpu
def test_a_seed_gives_the_same_batch_on_every_device(brain):
    datamodule = module(brain, deformation="affine_smooth")
    raw = next(iter(datamodule.train_dataloader()))
    here = datamodule.complete(raw)
    there = datamodule.complete(datamodule.transfer_batch_to_device(raw, torch.device("cuda"), 0))
    for one, other in zip(here, there, strict=True):
        assert (one - other.cpu()).abs().float().mean() < 2e-3
