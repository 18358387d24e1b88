"""Planes, views and frames agree about where each pixel lies in the atlas."""

import numpy as np
import pytest
import torch

from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.planes import Anchoring
from atlalign.errors import InputError
from atlalign.localization.fit import Frame, Lie
from atlalign.localization.located import anchoring_of
from atlalign.localization.samples import ViewSampler
from atlalign.localization.views import seen_tissue
from atlalign.localization.volume import AtlasVolume
from atlalign.recognition.answers import upright_frame
from atlalign.recognition.views import cut_views, even_tone, view_matrix
from atlalign.registration.section import Section

SIZE_MM = (6.0, 4.0, 5.0)
LEANING = np.array([[0.002, 0.004, 3.0], [0.0, 0.05, 0.4], [0.05, 0.001, 0.6]])


class Plain(ViewSampler):
    """Views in the template's own contrast."""

    def coloured(self, template, labels, expression, generator):
        return template


def ramp(axis: int) -> AtlasVolume:
    """A volume whose template is the share of the way along one axis, all of it tissue."""
    shape = [int(10 * size) for size in SIZE_MM]
    share = (torch.arange(shape[axis]) + 0.5) / shape[axis]
    template = share.view([-1 if i == axis else 1 for i in range(3)]).expand(shape).contiguous()
    labels = torch.ones(shape, dtype=torch.int32)
    return AtlasVolume(template, labels, torch.full((3,), 0.1), torch.zeros(3))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("cut_along", ["AP", "DV", "ML"])
def test_views_show_the_planes_that_they_come_with(axis, cut_along):
    sampler = Plain(volume=ramp(axis), view_px=33, cut_along=[cut_along], p_half=0.0, distortion=0.0)
    views = sampler(16, torch.Generator().manual_seed(0))
    assert len(views.images) > 10
    at_centre_mm = views.planes[:, 0, axis]
    shown_mm = views.images[:, 0, 14:19, 14:19].mean((1, 2)) * SIZE_MM[axis]
    inside = shown_mm > 0.1  # of damaged ones the centre may be missing
    assert (at_centre_mm - shown_mm)[inside].abs().median() < 0.15
    normal = torch.linalg.cross(views.planes[:, 1], views.planes[:, 2])
    assert (normal.abs().argmax(1) == ["AP", "DV", "ML"].index(cut_along)).all()
    if cut_along == "ML":  # a plane of the right half looks like its mirror image
        assert (views.planes[:, 0, 2] < SIZE_MM[2] / 2 + 0.5).all()


def test_halves_show_their_side():
    sampler = Plain(volume=ramp(2), view_px=33, p_half=1.0, p_expression=0.0)
    views = sampler(24, torch.Generator().manual_seed(1))
    assert set(views.sides.tolist()) == {1, 2}
    for image, side in zip(views.images, views.sides, strict=True):
        shown = image[image > 0]
        assert (shown < 0.51).all() if side == 1 else (shown > 0.49).all()


def test_the_same_seed_draws_the_same_views():
    sampler = ViewSampler(
        volume=AtlasVolume.of(phantom_atlas(image_shape=(40, 57), spacing_um=600)), view_px=32
    )
    one, same = (sampler(4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.planes, same.planes)
    assert one.images.min() >= 0
    assert one.images.max() <= 1


def test_wrong_axes_and_atlases_are_named():
    with pytest.raises(InputError, match="AB"):
        ViewSampler(volume=ramp(0), cut_along=["AB"])
    with pytest.raises(InputError, match="region ids"):
        AtlasVolume.of(phantom_atlas(image_shape=(40, 57), spacing_um=600, with_annotation=False))


def test_a_lie_and_a_matrix_say_the_same():
    frame = Frame(ramp(0), 0, 0.1)
    lie = Lie.of(LEANING, frame)
    assert lie.matrix(frame) == pytest.approx(LEANING)
    point = LEANING @ (20.0, 30.0, 1.0)
    assert lie.to_pixel @ (point[2], point[1], 1.0) == pytest.approx((20.0, 30.0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_templates_are_cut_where_the_plane_lies(axis):
    frame = Frame(ramp(axis), 0, 0.1)
    plane = np.array([[3.0, 0.2, -0.1]])
    image = frame.templates(plane)[0, 0]
    down, right = frame.ticks
    along = (3.0 + 0.2 * (down - 2.0)[:, None] - 0.1 * (right - 2.5), down[:, None], right)[axis]
    assert (image * SIZE_MM[axis] - along).abs().max() < 1e-4


def test_one_half_of_a_frame_is_shown():
    frame = Frame(ramp(2), 0, 0.1)
    assert frame.shown("whole").all()
    left = frame.shown("left") * frame.templates(np.array([[3.0, 0.0, 0.0]]))[0, 0]
    assert left.max() < 0.5
    assert left[:, :20].min() > 0


def test_an_anchoring_says_what_the_matrix_says():
    anchoring = anchoring_of(LEANING, (70, 90))
    assert isinstance(anchoring, Anchoring)
    for x, y in ((0, 0), (89, 69), (10, 40)):
        share = ((x + 0.5) / 90, (y + 0.5) / 70, 1.0)
        assert anchoring.share_to_um @ share / 1000 == pytest.approx(LEANING @ (x, y, 1.0))


def section(factor: int = 1) -> Section:
    """A bright disk, brighter at its right."""
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing="ij")
    disk = ((x - 100) ** 2 + (y - 50) ** 2 < 30**2).float()
    return Section(
        disk * (0.5 + (x > 100) * 0.5), (factor, factor), (120 * factor, 160 * factor), None, "dark"
    )


@pytest.mark.parametrize("factor", [1, 3])
def test_tissue_is_found_where_it_is(factor):
    tissue = seen_tissue(section(factor))
    expected = np.array([100, 50]) * factor + (factor - 1) / 2
    assert tissue.centre == pytest.approx(expected, abs=1.5 * factor)
    assert tissue.rms == pytest.approx(30 * factor / 2**0.5, rel=0.1)


def test_views_are_turned_clockwise():
    tissue = seen_tissue(section())
    upright, turned = cut_views(section(), [view_matrix(tissue.centre, tissue.rms, t) for t in (0, 90)], 33)
    assert upright[0, 16, 22] > upright[0, 16, 10]
    assert upright[0, 16, 16] > 0
    assert upright[0, 0].max() == 0
    # In a view turned clockwise, what was at the right is at the top.
    assert turned[0, 10, 16] > turned[0, 22, 16]


def test_tones_are_evened():
    faint = torch.zeros(1, 1, 40, 40)
    faint[..., 10:30, 10:30] = 0.02
    faint[..., 15:25, 15:25] = 0.2
    even = even_tone(faint)
    assert even.max() == pytest.approx(1)
    assert even[even > 0].mean() > 0.3
    assert even[0, 0, 0, 0] == 0


def test_an_upright_frame_follows_the_atlas():
    assert upright_frame(LEANING)[:, 0] @ (0, 0, 1) > 0.99
    sagittal = np.array([[0.05, 0.0, 0.0], [0.0, 0.05, 0.0], [0.0, 0.0, 2.0]])
    assert upright_frame(sagittal) == pytest.approx(np.array([[1.0, 0], [0, 1], [0, 0]]))


def test_an_empty_image_shows_no_tissue():
    empty = section()._replace(grey=torch.zeros(120, 160))
    with pytest.raises(InputError, match="x: expected a section"):
        seen_tissue(empty, "x")
