"""A section is found again from a plane that is a little off, and stays where it already lies well."""

import numpy as np
import pytest
from PIL import Image

from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.planes import Anchoring
from atlalign.errors import InputError
from atlalign.localization import NearbySearch
from atlalign.localization.located import anchoring_of, matrix_of
from atlalign.registration.ignored import Ignored
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options

SHAPE = (160, 228)
UPRIGHT = np.array([[-10.0, 268, 330], [476, 0, 0], [0, 0, -340]])
LEANING = np.add(UPRIGHT, [[0, -12, 0], [0, 24, 0], [0, 0, 0]])  # 2.9° towards the right


@pytest.fixture(scope="module")
def atlas():
    return phantom_atlas(image_shape=SHAPE, spacing_um=100)


@pytest.fixture(scope="module")
def search(atlas):
    return NearbySearch(atlas)


@pytest.fixture(scope="module")
def image(atlas, tmp_path_factory):
    """Write the phantom's plane at the anchoring `LEANING`."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    shares = np.stack([x / SHAPE[1], y / SHAPE[0], np.ones(SHAPE)])
    ap, dv, ml = np.tensordot(Anchoring(LEANING, SHAPE).share_to_um, shares, 1)
    index = [
        ap / atlas.spacing_um,
        (dv - atlas.origin_um[1]) / atlas.pixel_um[1],
        (ml - atlas.origin_um[0]) / atlas.pixel_um[0],
    ]
    index = [np.rint(one).astype(int) for one in index]
    inside = np.all([(one >= 0) & (one < n) for one, n in zip(index, atlas.template.shape, strict=True)], 0)
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[inside] = atlas.template.numpy()[tuple(one[inside] for one in index)]
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(pixels).save(path)
    return path


def apart_um(found: Anchoring, right: float = 0.75) -> float:
    """Return how far an anchoring is from the true one, averaged over the middle of the image up to a share."""
    s, t = np.meshgrid(np.linspace(0.25, right, 20), np.linspace(0.25, 0.75, 20))
    shares = np.stack([s.ravel(), t.ravel(), np.ones(s.size)])
    off = (found.share_to_um - Anchoring(LEANING, SHAPE).share_to_um) @ shares
    return float(np.linalg.norm(off, axis=0).mean())


def test_a_plane_that_is_off_is_found_again(search, image):
    start = Anchoring(np.add(LEANING, [[0, -32, 0], [0, 32, 0], [0, 0, 0]]), SHAPE)  # 400 µm behind, 4° more
    found = search.near(Job(image, anchoring=start), Options())
    assert apart_um(start) > 300
    assert apart_um(found.anchoring) < 120
    assert found.likeness > found.likeness_before


def test_a_plane_that_fits_stays(search, image):
    found = search.near(Job(image, anchoring=Anchoring(LEANING, SHAPE)), Options())
    assert apart_um(found.anchoring) < 100  # the distance between planes of this atlas


def test_damage_and_the_other_half_do_not_count(search, image):
    """With the right half hidden, or missing, the left one is enough."""
    pixels = np.array(Image.open(image))
    pixels[:, 114:] = np.random.default_rng(0).integers(0, 255, (160, 114))
    damaged = image.with_name("damaged.png")
    Image.fromarray(pixels).save(damaged)
    start = Anchoring(np.add(LEANING, [[0, -14, 0], [0, 0, 0], [0, 0, 0]]), SHAPE)
    mask = np.zeros(SHAPE, np.bool_)
    mask[:, 114:] = True
    job = Job(damaged, anchoring=start, ignored=Ignored(mask))
    found = search.near(job, Options(hemisphere="left")).anchoring
    # Half a section says little of the slope from left to right: only the half that it shows is compared.
    assert apart_um(start, right=0.5) == pytest.approx(350)
    assert apart_um(found, right=0.5) < 90


def test_what_cannot_be_searched_is_said(search, atlas, image):
    with pytest.raises(InputError, match=r"a\.png: expected a plane"):
        search.near(Job(image), Options())
    without = atlas.template
    with pytest.raises(InputError, match="region ids"):
        NearbySearch(
            type(atlas)(without, None, 100.0, name="x", intensity_scale=255.0, pixel_um=(50.0, 50.0))
        )


def test_an_anchoring_and_its_matrix_are_the_same_plane():
    anchoring = Anchoring(LEANING, (67, 102))
    back = anchoring_of(matrix_of(anchoring), anchoring.size)
    np.testing.assert_allclose(back.vectors, anchoring.vectors, atol=1e-9)
    centre = matrix_of(anchoring) @ (50.5, 33, 1)
    np.testing.assert_allclose(1000 * centre, anchoring.share_to_um @ (0.5, 0.5, 1))
