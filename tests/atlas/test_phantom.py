from itertools import pairwise

import numpy as np
import pytest

from atlalign.atlas import phantom
from atlalign.atlas.phantom import phantom_volume
from atlalign.atlas.phantom_anatomy import PHANTOM_REGIONS
from atlalign.errors import InputError

SHAPE = (66, 80, 114)

VENTRICLES = (11, 12, 18, 23)  # their labels; they are dark in the template


@pytest.fixture(scope="module")
def volume():
    return phantom_volume(shape=SHAPE, seed=0)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_seed_decides_everything(volume):
    again = phantom_volume(shape=SHAPE, seed=0)
    assert all((a == b).all() for a, b in zip(volume, again, strict=True))


def test_another_seed_is_another_animal_of_the_same_anatomy(volume):
    template, labels = phantom_volume(shape=SHAPE, seed=1)
    assert (template != volume[0]).mean() > 0.2
    assert 0.9 < dice(labels > 0, volume[1] > 0) < 0.99
    cortex = [np.isin(ids, (3, 4, 5)) for ids in (labels, volume[1])]
    assert 0.8 < dice(*cortex) < 0.99


def test_changes_smoothly_from_plane_to_plane():
    template, _ = phantom_volume(shape=(132, 80, 114), seed=0)
    flat = template[10:125].reshape(115, -1).astype(float)
    correlation = np.array([np.corrcoef(a, b)[0, 1] for a, b in pairwise(flat)])
    assert correlation.min() > 0.85
    assert correlation[30:80].min() > 0.9
    assert (flat[:-1] != flat[1:]).any(axis=1).all()


@pytest.mark.parametrize("seed", range(4))
def test_tissue_reaches_from_front_to_back_and_fills_the_middle(seed):
    _, labels = phantom_volume(shape=(132, 40, 57), seed=seed)
    tissue = (labels > 0).mean(axis=(1, 2))
    assert (tissue[3:129] > 0).all()
    assert tissue[45:95].min() > 0.35
    assert tissue.max() < 0.65
    # No shape is cut off by the frame.
    assert not labels[:, [0, -1]].any()
    assert not labels[:, :, [0, -1]].any()


def test_template_and_labels_agree(volume):
    template, labels = volume
    assert set(np.unique(labels)) == {0, *PHANTOM_REGIONS}
    assert ((template == 0) == (labels == 0)).all()
    means = {region: template[labels == region].mean() for region in PHANTOM_REGIONS}
    assert max(means[region] for region in VENTRICLES) < 60
    solid = PHANTOM_REGIONS.keys() - {*VENTRICLES, 6, 10}
    assert min(means[region] for region in solid) > 80
    assert max(means[6], means[10]) < min(means[region] for region in solid)


@pytest.mark.parametrize("width", [57, 58])
def test_anatomy_is_symmetric_and_texture_is_not(width):
    template, labels = phantom_volume(shape=(12, 40, width), seed=0)
    assert (labels == labels[:, :, ::-1]).all()
    tissue = labels > 0
    difference = np.abs(template.astype(float) - template[:, :, ::-1])[tissue].mean()
    assert 2 < difference < 0.15 * template[tissue].mean()


def test_every_size_shows_the_same_anatomy():
    fine, coarse = (phantom_volume(shape=shape, seed=0)[1] for shape in [(24, 200, 285), (24, 151, 215)])
    rows = np.rint(np.arange(151) * 199 / 150).astype(int)
    columns = np.rint(np.arange(215) * 284 / 214).astype(int)
    sampled = fine[:, rows][:, :, columns]
    assert dice(sampled > 0, coarse > 0) > 0.99
    assert (sampled == coarse)[coarse > 0].mean() > 0.95
    for region in (4, 5, 8, 13, 15, 17, 22):
        assert dice(sampled == region, coarse == region) > 0.95, PHANTOM_REGIONS[region]


def test_computing_only_windows_changes_nothing(monkeypatch):
    quick = phantom_volume(shape=(24, 40, 57), seed=0)
    monkeypatch.setattr(phantom, "_window", lambda ellipse, x, y: (slice(None), slice(None)))
    for a, b in zip(quick, phantom_volume(shape=(24, 40, 57), seed=0), strict=True):
        assert (a == b).all()


def test_texture_is_continuous_across_the_planes_of_its_lattices():
    animal = phantom._Animal(np.random.default_rng(0))
    # 6.6 mm is the 55th plane of the finest lattice.
    before, after = (animal.section(ap, (80, 114))[0].astype(int) for ap in (6.5999, 6.6001))
    assert np.abs(after - before).max() < 5


def test_inner_shapes_need_tissue_around_them(monkeypatch):
    inner = {name: shape for name, shape in phantom.SHAPES.items() if shape.inside}
    monkeypatch.setattr(phantom, "SHAPES", inner)
    assert not any(volume.any() for volume in phantom_volume(shape=(24, 40, 57), seed=0))


def test_planes_are_centred_in_equal_slabs():
    # The middles of three slabs are also those of slabs 1, 4 and 7 of nine.
    thick, thin = (phantom_volume(shape=(planes, 40, 57), seed=0) for planes in (3, 9))
    for coarse, fine in zip(thick, thin, strict=True):
        assert (coarse == fine[1::3]).all()


@pytest.mark.parametrize(("shape", "seed"), [((0, 40, 57), 0), ((4, 1, 57), 0), ((4, 40, 57), -1)])
def test_impossible_arguments_are_refused(shape, seed):
    with pytest.raises(InputError, match="phantom: expected at least"):
        phantom_volume(shape=shape, seed=seed)
