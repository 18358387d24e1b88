"""Demo data is what it claims to be: valid, large enough, exact both ways, and never half-written."""

import errno
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from atlalign.atlas.atlas import phantom_atlas
from atlalign.data import schema
from atlalign.data.demo import DemoDataModule, write_demo
from atlalign.errors import InputError
from atlalign.geometry import compose, jacobian_determinant, warp

SHAPE = (64, 92)


@pytest.fixture(scope="module")
def brain():
    return phantom_atlas(image_shape=SHAPE, spacing_um=1200.0, with_annotation=False)


@pytest.fixture(scope="module", params=["smooth", "affine"])
def written(request, brain, tmp_path_factory):
    """Return a written file's arrays as tensors, with the atlas sections that they were made from."""
    path = tmp_path_factory.mktemp("demo") / "demo.h5"
    write_demo(path, brain, n_sections=5, fields_per_section=3, deformation=request.param)
    assert schema.validate(path) == (15, SHAPE)
    with h5py.File(path) as file:
        arrays = {name: torch.from_numpy(file[name][:]) for name in schema.CONTRACT}
        assert file.attrs["deformation"] == request.param
    dvf, inverse = (arrays[n].permute(0, 3, 1, 2).float() for n in ("deltas_xy", "inv_deltas_xy"))
    section = brain.template[brain.plane_index(arrays["p"])][:, None].float() / 255
    return arrays["img"][:, None].float() / 255, section, dvf, inverse, arrays


def test_displacements_are_as_large_as_promised(written):
    dvf = written[2]
    share = dvf.square().sum(1).sqrt().flatten(1) / SHAPE[1]
    assert share.mean(1).min() >= 0.02
    assert share.amax(1).min() >= 0.06
    assert share.amax() < 0.25


def test_fields_do_not_fold_and_invert_each_other(written):
    _, _, dvf, inverse, _ = written
    assert jacobian_determinant(dvf).min() > 0
    assert jacobian_determinant(inverse).min() > 0
    y, x = torch.meshgrid(torch.arange(SHAPE[0]), torch.arange(SHAPE[1]), indexing="ij")
    target = torch.stack([x, y]) + inverse
    limits = torch.tensor([SHAPE[1] - 1, SHAPE[0] - 1]).view(1, 2, 1, 1)
    inside = ((target >= 0) & (target <= limits)).all(1)
    residual = compose(dvf, inverse).square().sum(1).sqrt()
    assert residual[inside].max() < 0.05  # float16 holds 8 px to 0.004, and twice that with its neighbours


def test_the_true_field_brings_the_moving_image_to_the_section(written):
    moving, section, dvf, inverse, _ = written
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    before = (moving - section)[inner].abs().mean()
    after = (warp(moving, dvf) - section)[inner].abs().mean()
    assert after < 0.4 * before  # what remains is two interpolations of fine detail
    assert (warp(moving, inverse) - section)[inner].abs().mean() > before


def test_copies_of_a_section_share_its_id_and_position(written):
    arrays = written[4]
    assert arrays["image_id"].view(5, 3).eq(arrays["image_id"].view(5, 3)[:, :1]).all()
    assert arrays["p"].unique().numel() == arrays["image_id"].unique().numel() == 5
    distinct = arrays["deltas_xy"].flatten(1).float()
    assert torch.cdist(distinct, distinct).fill_diagonal_(1e9).min() > 10


def module(folder, atlas, **arguments) -> DemoDataModule:
    return DemoDataModule(
        folder, atlas=atlas, image_shape=SHAPE, n_sections=4, fields_per_section=2, **arguments
    )


def test_file_is_rewritten_only_if_arguments_change(tmp_path, brain):
    first = module(tmp_path, brain)
    first.prepare_data()
    written = first.path.stat().st_mtime_ns
    again = module(tmp_path, brain)
    again.prepare_data()
    assert again.path == first.path
    assert first.path.stat().st_mtime_ns == written
    others = [module(tmp_path, brain, data_seed=1), module(tmp_path, brain, deformation="affine")]
    others.append(module(tmp_path, phantom_atlas(image_shape=SHAPE, seed=1, spacing_um=1200.0)))
    assert len({other.path for other in [first, *others]}) == 4


def test_validation_sections_are_other_sections(tmp_path, brain):
    demo = module(tmp_path, brain, batch_size=2)
    demo.prepare_data()
    demo.setup()
    ids = demo.val_dataset.image_ids.numpy()
    assert not set(ids[demo.train_split]) & set(ids[demo.val_split])
    assert len(np.unique(ids[demo.val_split])) == 1


def test_an_interrupted_writing_leaves_nothing_under_the_final_name(tmp_path, brain, monkeypatch):
    path = tmp_path / "demo.h5"
    calls = []

    def fails_at_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return warp(*arguments)

    monkeypatch.setattr("atlalign.data.demo.warp", fails_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_demo(path, brain, n_sections=4, fields_per_section=1)
    assert not path.exists()
    monkeypatch.undo()
    write_demo(path, brain, n_sections=4, fields_per_section=1)
    assert schema.validate(path).n_samples == 4


def test_bad_arguments(tmp_path, brain):
    with pytest.raises(InputError, match=r"data.n_sections: expected at most \d+, .* got 40"):
        write_demo(tmp_path / "demo.h5", brain, n_sections=40, fields_per_section=1)
    with pytest.raises(InputError, match=r"'smoth'.* smooth"):
        module(tmp_path, brain, deformation="smoth")


def test_examples_are_spread_over_the_validation_split(tmp_path, brain):
    demo = module(tmp_path, brain, val_fraction=0.5)
    demo.prepare_data()
    demo.setup()
    assert len(demo.examples(2).image_id.unique()) == 2
    assert len(demo.examples(99).image_id) == len(demo.val_split)


def test_images_that_no_file_may_hold_leave_none(tmp_path):
    tiny = phantom_atlas(image_shape=(16, 16), spacing_um=600)
    with pytest.raises(InputError, match=r"data.image_shape: .* 32 px, got 16×16"):
        write_demo(tmp_path / "demo.h5", tiny, n_sections=2, fields_per_section=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["n_sections", "fields_per_section", "data_seed"])
@pytest.mark.parametrize("value", [-3, "abc"])
def test_invalid_number_of_samples_is_reported(key, value, tmp_path):
    with pytest.raises(InputError, match=f"data.{key}: expected"):
        DemoDataModule(tmp_path, atlas=phantom_atlas(image_shape=(32, 48), spacing_um=600), **{key: value})


def test_a_full_disk_is_one_sentence_and_leaves_nothing(brain, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"demo\.h5 cannot be written: No space left"):
        write_demo(tmp_path / "demo.h5", brain, n_sections=1, fields_per_section=1)
    assert not any(tmp_path.iterdir())


def test_a_tilde_in_a_quoted_path_is_the_home_folder(brain, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module("~/demo data", brain).path.parent == tmp_path / "demo data"
