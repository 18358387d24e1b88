"""Placing and registering sections: known maps come back, whatever the image's size, depth and orientation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import nn

from atlalign.atlas.atlas import Atlas, phantom_atlas
from atlalign.atlas.planes import Anchoring, Plane, apply_affine, invert_affine
from atlalign.errors import InputError
from atlalign.geometry import affine_to_dvf, compose, invert, resize, smooth_field, warp
from atlalign.io.images import ImageFile, resize_images
from atlalign.networks import FinePassNet, Registration
from atlalign.registration.grid import Grid
from atlalign.registration.measures import affine_part, cover
from atlalign.registration.placed_image import antialiased, placed_image, sampled_image
from atlalign.registration.placement import Placement, flipped, place, turned
from atlalign.registration.quality import (
    LIMITS,
    SENTENCES,
    Alternative,
    OtherPlane,
    Quality,
    judge,
    likeliest_distance,
)
from atlalign.registration.references import Reference, atlas_reference, image_reference
from atlalign.registration.register import register
from atlalign.registration.section import Section, read_section
from atlalign.registration.turning import likely_turns

SHAPE = (40, 56)
POSITION_UM = 6000.0


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return phantom_atlas(image_shape=(80, 113), spacing_um=1200)


@pytest.fixture(scope="module")
def reference(atlas) -> Reference:
    return atlas_reference(atlas, Plane.at(POSITION_UM, atlas.origin_um), SHAPE)


class Shift(nn.Module):
    """Moves by a constant, and notes the images that it sees."""

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.by = torch.tensor([x, y]).view(1, 2, 1, 1)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, reference: torch.Tensor, moving: torch.Tensor) -> Registration:
        self.seen.append((reference, moving))
        dvf = self.by.expand(1, 2, *moving.shape[-2:])
        return Registration(registered=warp(moving, dvf), dvf=dvf)


class Known(nn.Module):
    """Returns a known field, and its inverse when the pair is swapped."""

    def __init__(self, dvf: torch.Tensor, reference: torch.Tensor) -> None:
        super().__init__()
        self.dvf, self.reference = dvf, reference

    def forward(self, reference: torch.Tensor, moving: torch.Tensor) -> Registration:
        dvf = self.dvf if torch.equal(reference, self.reference) else invert(self.dvf)
        return Registration(registered=warp(moving, dvf), dvf=dvf)


def drawn(reference: Reference, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the image (h, w) in 8 bits that shows the reference where `matrix`, reference to image pixels, puts it."""
    back = torch.from_numpy(invert_affine(matrix))[None]
    canvas = torch.zeros(1, 1, *shape, dtype=torch.float64)
    height, width = reference.image.shape[-2:]
    canvas[..., :height, :width] = reference.image
    return (warp(canvas, affine_to_dvf(back, shape))[0, 0] * 255).round().byte().numpy()


def exposed(image: torch.Tensor) -> torch.Tensor:
    """Return an image as bright as dark sections are made."""
    return (image / float(np.percentile(image[image > 0], 99.9))).clamp(max=1)


def identity(reference: Reference) -> Known:
    return Known(torch.zeros(1, 2, *SHAPE), reference.image)


class TestReference:
    def test_it_is_the_atlas_plane_at_the_networks_size(self, atlas, reference):
        full = atlas_reference(atlas, Plane.at(POSITION_UM, atlas.origin_um), atlas.image_shape)
        assert torch.equal(full.image[0], atlas.section(POSITION_UM))
        assert (full.labels == atlas.labels(POSITION_UM)[0].numpy()).all()
        assert reference.image.shape == (1, 1, *SHAPE)
        assert reference.labels.shape == atlas.image_shape
        assert reference.grid.pixel_um == pytest.approx((11400 / 55, 8000 / 39))

    def test_a_tilted_plane_shows_other_planes_on_either_side(self, atlas):
        tilt = 3600 / 11400
        plane = Plane.at(POSITION_UM - 1800, atlas.origin_um, per_x=tilt)
        tilted = atlas_reference(atlas, plane, atlas.image_shape)
        assert torch.equal(tilted.image[0, :, :, 0], atlas.section(POSITION_UM - 1800)[..., 0])
        middle = atlas.section(POSITION_UM)[0, :, 57]
        assert torch.equal(tilted.image[0, 0, :, 57], middle)
        assert torch.equal(tilted.image[0, 0, :, 112], atlas.section(POSITION_UM + 1800)[0, :, 112])

    def test_an_empty_plane_is_refused(self, atlas):
        empty = replace(atlas, template=atlas.template * 0)
        without_regions = replace(atlas, annotation=atlas.annotation * 0)
        for nothing in (empty, without_regions):
            with pytest.raises(InputError, match=r"found none in atlas .* at 6000 µm"):
                atlas_reference(nothing, Plane.at(POSITION_UM, atlas.origin_um), SHAPE)

    @pytest.mark.parametrize(("side", "kept"), [("left", slice(0, 28)), ("right", slice(28, 56))])
    def test_half_of_it_is_kept(self, reference, side, kept):
        half = reference.half(side)
        assert torch.equal(half.image[..., kept], reference.image[..., kept])
        assert half.image.count_nonzero() == reference.image[..., kept].count_nonzero()
        assert 0.45 < np.count_nonzero(half.labels) / np.count_nonzero(reference.labels) < 0.55
        assert not half.tissue[:, {"left": slice(29, None), "right": slice(0, 27)}[side]].any()

    def test_reference_image_needs_a_pixel_size(self):
        image = ImageFile(
            np.pad(np.arange(39 * 51, dtype=np.uint16).reshape(39, 51), ((20, 20), (30, 30))), None
        )
        own = image_reference(image, None, SHAPE, pixel_um=10, name="r")
        assert own.grid == Grid(SHAPE, (20.0, 20.0))
        assert own.plane is None
        assert image_reference(
            image._replace(pixel_um=(5, 10)), None, SHAPE, pixel_um=None, name="r"
        ).grid == Grid(SHAPE, (10.0, 20.0))
        with pytest.raises(InputError, match=r"^r: expected a pixel size.*--reference-pixel-um"):
            image_reference(image, None, SHAPE, pixel_um=None, name="r")
        with pytest.raises(InputError, match=r"^r: expected a pixel size.*, got 0 × 0 µm"):
            image_reference(image, None, SHAPE, pixel_um=0, name="r")

    def test_reference_image_may_be_bright_or_dark(self):
        tissue = np.pad(np.arange(60 * 80, dtype=np.uint8).reshape(60, 80), 10)
        dark, bright = (
            image_reference(ImageFile(pixels, (25, 25)), None, SHAPE, pixel_um=None, name="r")
            for pixels in (tissue, 255 - tissue)
        )
        assert torch.allclose(dark.image, bright.image, atol=1e-6)
        assert float(bright.image[0, 0, 0, 0]) == 0


class TestReading:
    IMAGE = np.pad(np.add.outer(np.arange(60), np.arange(90)).astype(np.uint8), 20)

    def test_every_depth_colour_and_exposure_gives_the_same(self):
        brightest = np.percentile(self.IMAGE[self.IMAGE > 0], 99.9)
        expected = torch.from_numpy((self.IMAGE / brightest).clip(max=1)).float()
        wide = self.IMAGE.astype(np.uint16) * 257
        dim = (self.IMAGE // 4).astype(np.uint8)
        for pixels in (self.IMAGE, np.stack([self.IMAGE] * 3, -1), wide, wide.astype(np.float32) / 65535):
            assert torch.allclose(read_section(ImageFile(pixels, None), SHAPE).grey, expected, atol=1e-5)
        assert torch.allclose(read_section(ImageFile(dim, None), SHAPE).grey, expected, atol=0.03)

    def test_a_bright_slide_is_turned_into_a_dark_one(self):
        dark, bright = (
            read_section(ImageFile(pixels, None), SHAPE) for pixels in (self.IMAGE, 255 - self.IMAGE)
        )
        assert (dark.background, bright.background) == ("dark", "bright")
        assert torch.allclose(bright.grey, dark.grey, atol=1e-6)

    def test_given_background_overrides_detection(self):
        """Then the darkest pixels are ground, not those of the border."""
        bright = ImageFile(255 - self.IMAGE, None)
        assert read_section(bright, SHAPE).background == "bright"
        kept = read_section(bright, SHAPE, background="dark")
        darkest = 255 - np.percentile(self.IMAGE, 99.9)
        expected = torch.from_numpy((255 - self.IMAGE - darkest).clip(0)).float() / (255 - darkest)
        assert kept.background == "dark"
        assert torch.allclose(kept.grey, expected, atol=1e-6)

    def test_large_image_is_shrunk_with_known_pixel_positions(self):
        large = np.kron(self.IMAGE, np.ones((12, 12), np.uint8))
        section = read_section(ImageFile(large, None), SHAPE)
        assert section.scale == (13, 13)  # 1200 // 40 // 2 = 15 rows, 1560 // 56 // 2 = 13 columns
        block = large[26:39, 39:52].mean() / np.percentile(large[large > 0], 99.9)
        assert float(section.grey[2, 3]) == pytest.approx(block, abs=1e-5)
        assert apply_affine(section.to_grey, np.array([[45.0, 32.0]])) == pytest.approx(np.array([[3, 2]]))

    @pytest.mark.parametrize("value", [0, 7, 255])
    def test_an_empty_image_is_refused(self, value):
        with pytest.raises(InputError, match=r"s\.png: expected a section, but every pixel is"):
            read_section(ImageFile(np.full((50, 60), value, np.uint8), None), SHAPE, name="s.png")


class TestPlacing:
    def test_lost_detail_is_averaged_without_aliasing(self):
        stripes = (torch.arange(168) % 2).float().expand(120, -1)
        section = Section(stripes, (1.0, 1.0), (120, 168), None, "dark")
        placement = Placement(np.diag([3.0, 3.0, 1.0])[:2], (1.0, 1.0), "user", "stretch")
        inside = (..., slice(4, -4), slice(4, -4))
        placed = placed_image(section, placement, SHAPE)
        assert (placed - 0.5)[inside].abs().max() < 0.02
        # Each third pixel of stripes makes stripes; what is antialiased once is not again.
        assert sampled_image(section, placement, shape=SHAPE)[inside].std() > 0.4
        assert torch.equal(sampled_image(antialiased(section, placement), placement, shape=SHAPE), placed)

    def test_stretched_corners_lie_on_corners(self, reference):
        section = read_section(ImageFile(drawn(reference, np.eye(2, 3), SHAPE), None), SHAPE)
        placement = place(section, reference, by="stretch")
        assert placement.matrix == pytest.approx(np.eye(2, 3))
        assert placement.pixel_um == pytest.approx(reference.grid.pixel_um)
        assert (placement.pixel_size_from, placement.placed_by) == ("stretch", "stretch")
        assert torch.allclose(placed_image(section, placement, SHAPE), exposed(reference.image), atol=0.01)
        larger = read_section(
            ImageFile(np.zeros((79, 221), np.uint8) + np.eye(79, 221, dtype=np.uint8), None), SHAPE
        )
        assert place(larger, reference, by="stretch").matrix == pytest.approx(
            np.array([[4.0, 0, 0], [0, 2, 0]])
        )

    @pytest.mark.parametrize("pixel_um", [None, 50.0])
    def test_a_section_somewhere_on_its_slide_is_found(self, reference, pixel_um):
        """By its own extent, or by the size of its pixels: the same place within the blur of a coarse mask."""
        scale = reference.grid.pixel_um[0] / 50, reference.grid.pixel_um[1] / 50
        matrix = np.array([[scale[0], 0, 61.0], [0, scale[1], 23.0]])
        section = read_section(ImageFile(drawn(reference, matrix, (220, 330)), None), SHAPE)
        placement = place(section, reference, pixel_size_um=pixel_um)
        assert placement.placed_by == ("fit" if pixel_um is None else "scale")
        corners = np.array([[0, 0], [55, 0], [0, 39], [55, 39.0]])
        error = apply_affine(placement.matrix, corners) - apply_affine(matrix, corners)
        assert np.linalg.norm(error, axis=1).max() < 6
        assert placement.pixel_um == pytest.approx((50, 50), rel=0.03)

    @pytest.mark.parametrize("by", ["fit", "scale", "stretch"])
    @pytest.mark.parametrize("mirrored", [False, True])
    @pytest.mark.parametrize("turn", [0, 90, 180, 270, -90])
    def test_a_turned_or_mirrored_image_is_placed_like_the_upright_one(self, reference, by, mirrored, turn):
        upright = drawn(reference, np.array([[1.5, 0, 9], [0, 1.5, 4]]), (75, 105))
        seen = np.rot90(np.fliplr(upright) if mirrored else upright, -turn // 90)
        pixel_um = 100.0 if by == "scale" else None
        placed = []
        for image, orientation in (
            (upright, {}),
            (seen, {"mirrored": mirrored, "turn": turn}),
        ):
            section = read_section(ImageFile(np.ascontiguousarray(image), None), SHAPE)
            placement = place(section, reference, by=by, pixel_size_um=pixel_um, **orientation)
            placed.append(placed_image(section, placement, SHAPE))
        assert torch.allclose(*placed, atol=1e-4)

    def test_an_anchoring_is_followed(self, atlas, reference):
        """Mirrored, turned, scaled: what was drawn through the anchoring's map comes back as the atlas shows it."""
        matrix = np.array([[-1.8, 0.2, 130.0], [0.3, 2.1, 8.0]])
        px_to_mm = np.diag([size / 1000 for size in reference.grid.pixel_um]) @ invert_affine(matrix)
        anchoring = Anchoring.of_plane(reference.plane, px_to_mm, (110, 150))
        section = read_section(ImageFile(drawn(reference, matrix, (110, 150)), None), SHAPE)
        placement = place(section, reference, anchoring=anchoring)
        assert placement.placed_by == "anchoring"
        assert placement.matrix == pytest.approx(matrix)
        inner = (..., slice(3, -3), slice(3, -3))
        placed = placed_image(section, placement, SHAPE)
        assert (placed - exposed(reference.image))[inner].abs().mean() < 0.03
        with pytest.raises(InputError, match="--mirrored and --turn cannot be combined"):
            place(section, reference, anchoring=anchoring, mirrored=True)
        # The anchored image was a thumbnail, twice or half as large.
        for size in ((220, 300), (55, 75)):
            same = Anchoring(anchoring.vectors, size)
            assert place(section, reference, anchoring=same).matrix == pytest.approx(matrix)
        with pytest.raises(InputError, match="110×130 px, found 110×150 px"):
            place(section, reference, anchoring=Anchoring(anchoring.vectors, (110, 130)))

    @pytest.mark.parametrize("scale", [(0.05, 0.05), (0.02, 1.0), (20.0, 20.0), (5.0, 0.4), (1e-3, 1e3)])
    def test_an_anchoring_of_an_impossible_size_is_refused(self, reference, scale):
        """Two voxels for an image ask for a registered image of 2 Gpx."""
        px_to_mm = np.diag([size / 1000 for size in reference.grid.pixel_um]) @ np.eye(2, 3)
        whole = Anchoring.of_plane(reference.plane, px_to_mm, SHAPE).vectors
        section = read_section(ImageFile(drawn(reference, np.eye(2, 3), SHAPE), None), SHAPE)
        sides = np.diag([1, *scale])
        assert place(section, reference, anchoring=Anchoring(whole, SHAPE)).placed_by == "anchoring"
        with pytest.raises(InputError, match=r"pixel size \(anchoring\) .*0\.01 to 100 times.*got"):
            place(section, reference, anchoring=Anchoring(sides @ whole, SHAPE))

    def test_missing_information_is_reported(self, reference):
        section = read_section(ImageFile(drawn(reference, np.eye(2, 3), SHAPE), None), SHAPE)
        with pytest.raises(InputError, match="expected an anchored section"):
            place(section, reference, by="anchoring")
        with pytest.raises(InputError, match="--place scale: expected"):
            place(section, reference, by="scale")

    @pytest.mark.parametrize("by", ["scale", "fit"])
    @pytest.mark.parametrize("pixel_um", [0.0, -20.0, float("nan"), float("inf"), 0.2, 20000.0])
    def test_pixels_of_an_impossible_size_are_refused(self, reference, by, pixel_um):
        section = read_section(ImageFile(drawn(reference, np.eye(2, 3), SHAPE), None), SHAPE)
        with pytest.raises(InputError, match=r"pixel size \(--pixel-size-um\) .*got"):
            place(section, reference, by=by, pixel_size_um=pixel_um)


class TestRegistering:
    MATRIX = np.array([[-2.5, 0.3, 160.0], [0.2, 2.2, 8.0]])

    @pytest.fixture
    def section(self, reference):
        return read_section(ImageFile(drawn(reference, self.MATRIX, (120, 180)), None), SHAPE)

    @pytest.fixture
    def placement(self):
        return Placement(self.MATRIX, (90.0, 100.0), "user", "anchoring")

    def test_points_go_through_the_field_and_then_through_the_placement(self, reference, section, placement):
        dvf = smooth_field(1, SHAPE, generator=torch.Generator().manual_seed(3)).dvf
        result = register(Known(dvf, reference.image), reference, section, placement)
        q = np.array([[10, 7], [28, 20], [50, 33]])
        moved = q + dvf[0, :, q[:, 1], q[:, 0]].T.numpy()
        expected = apply_affine(self.MATRIX, moved)
        points_mm = reference.grid.to_mm(q.astype(np.float64))
        assert result.transform.to_section(points_mm) == pytest.approx(expected, abs=1e-3)
        # Back through the inverse, which is known between the pixels of a coarse grid.
        back = reference.grid.to_pixels(result.transform.to_reference(expected))
        assert back == pytest.approx(q, abs=0.02)
        assert torch.equal(result.registered, warp(result.placed, dvf))
        assert result.transform.section == Grid((120, 180), (90.0, 100.0))

    def test_a_last_pass_corrects_the_field_on_larger_images(self, reference, section, placement):
        """It sees the pictures between the pixels of the coarse network, which alone makes the comparisons."""
        dvf = smooth_field(1, SHAPE, generator=torch.Generator().manual_seed(3)).dvf
        network = FinePassNet(Known(dvf, reference.image), Shift(3.0, -4.0), reduction=2)
        result = register(network, reference, section, placement)
        ((fixed, moving),) = network.fine.seen
        larger = (80, 112)
        assert torch.equal(fixed, resize_images(reference.full, larger)[None])
        smaller = nn.functional.interpolate(moving, SHAPE, mode="bilinear", align_corners=True)
        expected = warp(result.placed, dvf, padding_mode="border")
        assert (smaller - expected).abs().mean() < 0.1 * (expected - result.placed).abs().mean()
        both = compose(outer=resize(dvf, larger), inner=network.fine.by.expand(1, 2, *larger))
        torch.testing.assert_close(
            result.registered, warp(result.placed, resize(both, SHAPE)), atol=1e-4, rtol=0
        )
        alone = register(network.coarse, reference, section, placement)
        assert result.quality.likeness == alone.quality.likeness
        assert result.quality.inverse_consistency_um == alone.quality.inverse_consistency_um
        assert result.quality.displacement_mean_um != alone.quality.displacement_mean_um

    def test_the_registered_image_is_the_reference_again(self, reference, section, placement):
        """At the section's resolution: drawn through the map, and brought back by the transform."""
        result = register(identity(reference), reference, section, placement)
        image = drawn(reference, self.MATRIX, (120, 180))
        registered = np.concatenate(list(result.transform.register(image)))
        assert registered.shape == result.transform.reference.shape == (90, 128)
        y, x = (
            np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(SHAPE, registered.shape, strict=True)
        )
        expected = (reference.image[0, 0].numpy() * 255)[y[:, None], x]
        assert np.abs(registered.astype(float) - expected)[6:-6, 6:-6].mean() < 8
        labels = np.concatenate(list(result.transform.label(reference.labels)))
        bright = image > 60
        assert (labels[bright] > 0).mean() > 0.97

    def test_quality_of_a_known_shift(self, reference, section, placement):
        dvf = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1).expand(1, 2, *SHAPE).contiguous()
        quality = register(Known(dvf, reference.image), reference, section, placement).quality
        x_um, y_um = reference.grid.pixel_um
        length = float(np.hypot(3 * x_um, 4 * y_um))
        assert quality.displacement_mean_um == pytest.approx(length, rel=1e-5)
        assert quality.displacement_max_um == pytest.approx(length, rel=1e-5)
        assert quality.folding == 0
        assert quality.inverse_consistency_um == pytest.approx(0, abs=0.5)
        assert quality.similarity_loss > 0.1  # it was in place before

    def test_bending_excludes_the_affine_part(self, reference, section, placement):
        y, x = torch.meshgrid(*(torch.arange(size) / 1.0 for size in SHAPE), indexing="ij")
        sheared = torch.stack([0.1 * y - 2, 0.05 * x])[None]
        assert (
            register(Known(sheared, reference.image), reference, section, placement).quality.bending_um < 0.1
        )
        one_column_um = reference.grid.pixel_um[0]
        # In tissue of any shape, ± one column on alternate rows is as far from any affine map.
        wave = torch.stack([1 - 2 * (y % 2), 0 * y])[None]
        bent = register(
            Known(sheared + wave, reference.image), reference, section, placement
        ).quality.bending_um
        assert bent == pytest.approx(one_column_um, rel=0.1)

    @pytest.mark.parametrize(("degrees", "scale"), [(0, 1.25), (0, 0.8), (7, 1), (-7, 1)])
    def test_turn_and_size_are_found_in_a_field(self, reference, degrees, scale):
        """In µm: the pixels of a grid may be oblong."""
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        pixel_um = np.array(reference.grid.pixel_um)
        linear = scale * np.array([[cosine, -sine], [sine, cosine]]) * pixel_um / pixel_um[:, None]
        matrix = torch.from_numpy(np.column_stack([linear, (3.0, -2.0)])).float()
        found = affine_part(affine_to_dvf(matrix[None], SHAPE), reference)
        assert found.bending_um == pytest.approx(0, abs=0.1)
        assert found.rescaling == pytest.approx(0.25 if scale != 1 else 0, abs=1e-4)
        assert found.rotation_deg == pytest.approx(abs(degrees), abs=1e-3)

    def test_missing_and_surplus_tissue_are_measured(self, reference):
        tissue = reference.tissue
        whole = tissue.float()[None, None]
        assert cover(whole, reference) == (0, 0, 0)
        half = whole.clone()
        half[..., : SHAPE[1] // 2] = 0
        uncovered, gap, beyond = cover(half, reference)
        assert (uncovered, beyond) == (pytest.approx(0.5, abs=0.05), 0)
        assert 0.3 < gap < uncovered  # without what lies near the outline
        assert cover(torch.ones_like(whole), reference) == (
            0,
            0,
            pytest.approx(float((~tissue).sum() / tissue.sum())),
        )

    def test_a_gap_is_one_place_inside_the_section(self, reference):
        """As many dark pixels in several places, or along the outline, are no gap."""
        middle = SHAPE[1] // 2
        inside = (
            distance_transform_edt(reference.tissue.numpy(), sampling=reference.grid.pixel_um[::-1]) > 300
        )
        tissue = reference.tissue.numpy()
        torn, spotted, eroded = (tissue.copy() for _ in range(3))
        torn[:, middle] = False
        spotted[::2, ::2] = False
        eroded[~inside] = False
        torn, spotted, eroded = (
            torch.from_numpy(image).float()[None, None] for image in (torn, spotted, eroded)
        )
        assert cover(torn, reference).gap == pytest.approx(inside[:, middle].sum() / tissue.sum())
        assert cover(spotted, reference).gap == pytest.approx(1 / tissue.sum())
        assert cover(eroded, reference).gap == 0
        assert cover(eroded, reference).uncovered > cover(torn, reference).uncovered

    def test_one_sided_error_is_inconsistent(self, reference, section, placement):
        shift = torch.full((1, 2, *SHAPE), 2.0)
        network = Known(shift, reference.image)
        network.forward = lambda reference, moving: Registration(registered=moving, dvf=shift)
        quality = register(network, reference, section, placement).quality
        x_um, y_um = reference.grid.pixel_um
        assert quality.inverse_consistency_um == pytest.approx(float(np.hypot(4 * x_um, 4 * y_um)), rel=1e-5)

    def test_folds_are_counted(self, reference, section, placement):
        dvf = torch.zeros(1, 2, *SHAPE)
        dvf[:, 0, :, 20:] = -5.0  # central differences see the step in two columns
        quality = register(Known(dvf, reference.image), reference, section, placement).quality
        assert quality.folding == pytest.approx(2 / SHAPE[1])

    def test_fields_that_are_not_finite_are_refused(self, reference, section, placement):
        network = Known(torch.full((1, 2, *SHAPE), torch.nan), reference.image)
        with pytest.raises(InputError, match="displacements that are not finite"):
            register(network, reference, section, placement)

    def test_a_network_for_another_size_says_so(self, reference, section, placement):
        from atlalign.networks import GlobalAffineNet

        network = GlobalAffineNet(filters=(4,), dense_layers=(4,), image_shape=(32, 48))
        with pytest.raises(InputError, match="32×48 px, got 40×56"):
            register(network, reference, section, placement)

    def test_lack_of_memory_is_not_reported_as_wrong_size(self, reference, section, placement):
        network = Known(torch.zeros(1, 2, *SHAPE), reference.image)

        def forward(reference, moving):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

        network.forward = forward
        with pytest.raises(
            InputError, match=r"fails on images of 40×56 px: OutOfMemoryError: CUDA out of memory"
        ):
            register(network, reference, section, placement)


def test_a_section_is_turned_about_the_tissue_it_lies_on(reference):
    placement = Placement(np.array([[0.9, 0.2, 3.0], [-0.2, 0.9, 8.0]]), (1.0, 1.0), "user", "scale")
    [around] = turned(placement, reference, 180)
    y, x = np.nonzero(reference.tissue.numpy())
    centre = np.array([[x.mean(), y.mean()]])
    assert apply_affine(around.matrix, centre) == pytest.approx(apply_affine(placement.matrix, centre))
    right = centre + np.array([[5, 2]])
    assert apply_affine(around.matrix, right) == pytest.approx(
        apply_affine(placement.matrix, 2 * centre - right)
    )
    mirrored = flipped(placement, reference)
    left = centre + np.array([[-5, 2]])
    assert apply_affine(mirrored.matrix, right) == pytest.approx(apply_affine(placement.matrix, left))
    assert turned(around, reference, 180)[0].matrix == pytest.approx(placement.matrix)
    assert (around.turn, around.placed_by) == (180, "scale")


good = Quality(
    displacement_mean_um=100,
    displacement_max_um=400,
    folding=0,
    inverse_consistency_um=20,
    similarity_before=0.5,
    similarity_after=0.7,
    bending_um=90,
    rescaling=0.02,
    rotation_deg=1,
    uncovered=0.02,
    gap=0.001,
    beyond=0.02,
    likeness=0.8,
)


@pytest.mark.parametrize(
    ("change", "flag", "reason"),
    [
        ({}, "pass", ""),
        ({"folding": 0.002}, "look", "(folding 0.002, look above 0)"),
        (
            {"folding": 0.002, "displacement_max_um": 3001},
            "fail",
            "(displacement_max_um 3001, fail above 3000)",
        ),
        ({"bending_um": 250.0}, "look", "(bending_um 250, look above 200)"),
        ({"rescaling": 0.25}, "look", "(rescaling 0.25, look above 0.13)"),
        ({"rotation_deg": 5.0}, "look", "(rotation_deg 5, look above 3)"),
        ({"uncovered": 0.3}, "look", "(uncovered 0.3, look above 0.06)"),
        ({"gap": 0.02}, "look", "(gap 0.02, look above 0.012)"),
        ({"beyond": 0.6}, "fail", "(beyond 0.6, fail above 0.5)"),
        ({"similarity_after": 0.4}, "fail", "(similarity_loss 0.1, fail above 0.05)"),
        ({"inverse_consistency_um": float("nan")}, "fail", "(inverse_consistency_um nan, fail above 500)"),
    ],
)
def test_a_measure_above_its_limit_is_flagged_with_its_name_value_and_limit(change, flag, reason):
    found, sentence = judge(replace(good, **change))
    assert found == flag
    assert (sentence == "") is (flag == "pass")
    assert sentence.endswith(reason)
    assert judge(good, LIMITS | {"displacement_max_um": LIMITS["folding"]})[0] == "fail"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"bending_um": 249.6}, "250 µm"),
        ({"rotation_deg": 5.04}, "5.0°"),
        ({"rescaling": 1.0}, "100 %"),
        ({"gap": 0.0123}, "1.2 %"),
        ({"folding": 0.00004}, "0.004 %"),
        ({"folding": 0.002, "folding_by_points": 0.001}, "0.1 % because of points"),
    ],
)
def test_a_reason_gives_the_value_in_its_unit(change, value):
    assert f" {value}" in judge(replace(good, **change))[1].partition("(")[0]


def test_each_measure_with_a_limit_has_a_sentence_that_names_its_parts():
    assert SENTENCES.keys() == LIMITS.keys()
    for sentence in SENTENCES.values():
        assert sentence.format(value="1", where="2", how="3")


def test_a_section_that_fits_elsewhere_is_flagged_with_the_likeliest_place():
    turns = [Alternative("turned by 180°", 0.79), Alternative("turned by 90°", 0.4)]
    planes = [OtherPlane(-500.0, 0.4), OtherPlane(1000.0, 0.84)]
    assert judge(good.compared(turns[1:], planes[:1])) == ("pass", "")
    flag, reason = judge(good.compared([], planes))
    assert flag == "look"
    assert "fits better on a plane 1000 µm further back (better_elsewhere 0.05, look above -0.02)" in reason
    almost = [OtherPlane(-500.0, 0.79), OtherPlane(-250.0, 0.5)]
    assert "fits almost as well on a plane 500 µm further to the front" in judge(good.compared([], almost))[1]
    flag, reason = judge(good.compared(turns, []))
    assert (flag, "fits almost as well turned by 180°" in reason) == ("look", True)


def test_the_distance_to_the_likeliest_plane_is_the_vertex_of_a_parabola():
    def on(distance_um: float) -> OtherPlane:
        return OtherPlane(distance_um, 0.9 - ((distance_um - 210) / 1000) ** 2)

    planes = [on(distance) for distance in (500, -500, 1000, 250, -250)]
    assert likeliest_distance([on(0), *planes]) == pytest.approx(210)
    assert likeliest_distance([on(0), *planes[1::3]]) == 0  # the end of the planes
    quality = replace(good, likeness=on(0).likeness).compared([], planes)
    assert quality.plane_offset_um == pytest.approx(210)
    flag, reason = judge(quality)
    assert (flag, "210 µm further back (plane_offset_um 210, look above 200)" in reason) == ("look", True)
    to_the_front = judge(replace(quality, plane_offset_um=-737.0))[1]
    assert "737 µm further to the front (plane_offset_um 737, look above 200)" in to_the_front
    assert good.compared([], []).plane_offset_um == 0


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [-20, 5, 12, 47, 135, 180])
def test_any_turn_of_a_section_is_found(atlas, mirrored, degrees):
    reference = atlas_reference(atlas, Plane.at(POSITION_UM, atlas.origin_um), (80, 112))
    centre = np.array([55.5, 39.5])
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    # Content turned counter-clockwise on the slide, by twice as many pixels.
    linear = 2 * np.array([[cosine, sine], [-sine, cosine]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    matrix = np.column_stack([linear, np.array([150, 140]) - linear @ centre])
    section = read_section(ImageFile(drawn(reference, matrix, (280, 300)), None), (80, 112))
    placement = place(section, reference, by="fit", mirrored=mirrored)
    best, second, *_ = likely_turns(section, reference, placement)
    assert (best.degrees + degrees + 180) % 360 - 180 == pytest.approx(0, abs=2)
    assert best.likeness > second.likeness
    [upright] = turned(placement, reference, best.degrees)
    assert upright.matrix == pytest.approx(
        place(section, reference, by="fit", mirrored=mirrored, turn=best.degrees).matrix, abs=1e-6
    )
    corners = np.array([[0, 0], [111, 0], [0, 79], [111, 79.0]])
    error = apply_affine(upright.matrix, corners) - apply_affine(matrix, corners)
    assert np.linalg.norm(error, axis=1).max() < 8  # of 280 px


def test_stretching_turns_by_right_angles_only(reference):
    section = read_section(ImageFile(drawn(reference, np.eye(2, 3), SHAPE), None), SHAPE)
    with pytest.raises(InputError, match=r"--turn: .*stretch, got 20"):
        place(section, reference, by="stretch", turn=20)
