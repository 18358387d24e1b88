import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import SimpleITK
import torch
from omegaconf import OmegaConf

from atlalign.atlas import atlas as atlas_module
from atlalign.atlas.atlas import Atlas, allen_atlas, file_atlas, phantom_atlas
from atlalign.atlas.ontology import Region
from atlalign.atlas.phantom_anatomy import PHANTOM_REGIONS
from atlalign.cli import main
from atlalign.declarations import interface
from atlalign.errors import InputError
from atlalign.io.images import resize_images

SHAPE = (5, 6, 8)
CONF = Path(__file__).parents[2] / "conf" / "atlas"


def random_volume(dtype=np.uint8, shape=SHAPE):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def write_h5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            file[name] = array
    return path


def load(tmp_path, template, shape=None, **annotation):
    path = write_h5(tmp_path / "a.h5", template=template, **annotation)
    return file_atlas(path, image_shape=shape or template.shape[1:])


class TestAtlas:
    @pytest.fixture
    def allen_like(self):
        template = torch.arange(528, dtype=torch.int64).remainder(256).to(torch.uint8)
        annotation = torch.arange(528)[:, None, None].expand(528, 2, 2)
        return Atlas(template[:, None, None].expand(528, 2, 2), annotation, 25.0, "a", 255.0, (25.0, 25.0))

    @pytest.mark.parametrize(
        ("position", "index"),
        [(0, 0), (24.9, 0), (25, 1), (6600, 264), (13174, 526), (13175, 527), (13200, 527)],
    )
    def test_plane_index(self, allen_like, position, index):
        assert allen_like.plane_index(position) == index
        assert allen_like.labels(position)[0, 0, 0] == index

    def test_plane_index_of_many(self, allen_like):
        positions = torch.tensor([[0, 25], [26, 13200]], dtype=torch.int64)
        assert torch.equal(allen_like.plane_index(positions), torch.tensor([[0, 1], [1, 527]]))

    @pytest.mark.parametrize("position", [-1, 13200.1, float("nan"), torch.tensor([0.0, 14000.0])])
    def test_a_position_outside_is_refused(self, allen_like, position):
        with pytest.raises(InputError, match="expected 0 to 13200 µm"):
            allen_like.plane_index(position)

    @pytest.mark.parametrize("spacing_um", [10.0, 10.4, 12.7, 100 / 3, 1.1])
    def test_first_um_lies_in_its_own_plane(self, allen_like, spacing_um):
        atlas = replace(allen_like, spacing_um=spacing_um)
        planes = torch.arange(len(atlas.template))
        first = atlas.first_um(planes)
        assert torch.equal(atlas.plane_index(first), planes)
        assert (atlas.plane_index((first - 1).clamp(min=0))[1:] == planes[:-1]).all()

    def test_section(self, allen_like):
        section = allen_like.section(25 * 255)
        assert section.dtype == torch.float32
        assert section.shape == (1, 2, 2)
        assert (section == 1).all()
        assert allen_like.section(25)[0, 0, 0] == pytest.approx(1 / 255)

    def test_labels_need_an_annotation(self, allen_like):
        without = Atlas(allen_like.template, None, 25.0, "bare", 255.0, (25.0, 25.0))
        with pytest.raises(InputError, match="'bare' holds no annotation"):
            without.labels(0)
        for name, options in (
            ("flags", ["--annotation FILE"]),
            ("keys", ["atlas.annotation_path=FILE", "atlas.with_annotation=true"]),
        ):
            with interface(name), pytest.raises(InputError) as error:
                without.labels(0)
            assert all(option in str(error.value) for option in options)

    def test_a_flat_cut_is_the_section(self, tmp_path):
        raw = random_volume()
        atlas = load(tmp_path, raw, annotation=random_volume(np.uint32))
        for position in (0, 30, atlas.extent_um):
            image, labels = atlas.cut(torch.full(raw.shape[1:], position))
            assert torch.equal(image, atlas.section(position))
            assert torch.equal(labels, atlas.labels(position))

    def test_an_oblique_cut_takes_each_pixel_from_its_own_plane_and_nothing_outside(self, allen_like):
        position = torch.tensor([[-1.0, 25.0 * 255], [13200.0, 13201.0]])
        image, labels = allen_like.cut(position)
        assert labels.tolist() == [[[0, 255], [527, 0]]]
        assert (image * 255).tolist() == [[[0, 255], [527 - 2 * 256, 0]]]

    def test_planes_know_their_scale(self, tmp_path):
        raw = random_volume()  # (n, 6, 8)
        write_h5(tmp_path / "a.h5", template=raw)
        own = file_atlas(tmp_path / "a.h5", spacing_um=10)
        assert own.image_shape == raw.shape[1:]
        assert own.pixel_um == (10, 10)
        twice = file_atlas(tmp_path / "a.h5", image_shape=(11, 15), spacing_um=10)
        assert twice.pixel_um == (5, 5)
        assert own.origin_um == twice.origin_um == (5, 5)
        phantom = phantom_atlas(image_shape=(17, 39), spacing_um=6600)
        assert phantom.pixel_um == (11400 / 38, 8000 / 16)


class TestIntensities:
    def test_uint8_is_taken_as_it_is(self, tmp_path):
        raw = random_volume()
        atlas = load(tmp_path, raw)
        assert atlas.intensity_scale == 255
        assert (atlas.template.numpy() == raw).all()

    @pytest.mark.parametrize(
        "dtype", [np.uint16, ">u2", np.int16, np.uint32, np.int64, np.float32, np.float64]
    )
    def test_others_are_divided_by_the_99_9th_percentile_of_tissue(self, tmp_path, dtype):
        # More than one block of planes, half of it background, the bright voxels in the middle.
        raw = np.random.default_rng(0).gamma(2, 300, (50, 20, 30))
        raw[:, :10] = 0
        raw[20:30] *= 2
        raw = raw.astype(dtype)
        atlas = load(tmp_path, raw)
        expected = np.percentile(raw[raw > 0], 99.9)
        assert atlas.intensity_scale == pytest.approx(expected, rel=1e-6)
        scaled = np.clip(raw.astype(np.float64) / expected, 0, 1) * 255
        assert np.abs(atlas.template.numpy() - scaled).max() < 0.501
        assert atlas.template.max() == 255

    def test_scale_does_not_depend_on_the_annotation(self, tmp_path):
        raw = random_volume(np.uint16)
        with_ids = load(tmp_path, raw, annotation=(raw > 100).astype(np.uint8))
        assert with_ids.intensity_scale == load(tmp_path, raw).intensity_scale

    def test_a_handful_of_voxels(self, tmp_path):
        raw = np.zeros((1, 2, 2), np.float32)
        raw[0, 0] = 0.25, 0.5
        atlas = load(tmp_path, raw)
        assert atlas.intensity_scale == pytest.approx(np.percentile([0.25, 0.5], 99.9))


class TestResize:
    @pytest.mark.parametrize("shape", [(5, 9), (21, 33), (31, 40), (64, 64)])
    def test_a_constant_stays_constant(self, shape):
        for image in (torch.full((2, 31, 40), 0.37), torch.full((2, 31, 40), 93, dtype=torch.uint8)):
            resized = resize_images(image, shape)
            assert resized.dtype == image.dtype
            assert resized.shape == (2, *shape)
            torch.testing.assert_close(resized, image[:1, :1, :1].expand(2, *shape))

    @pytest.mark.parametrize("shape", [(11, 13), (41, 61), (21, 7)])
    def test_a_linear_ramp_stays_linear_with_its_ends_on_the_corners(self, shape):
        ramp = (torch.linspace(0, 1, 21)[:, None] + 2 * torch.linspace(0, 1, 25))[None]
        expected = torch.linspace(0, 1, shape[0])[:, None] + 2 * torch.linspace(0, 1, shape[1])
        resized = resize_images(ramp, shape)[0]
        # Within the reach of the antialiasing's reflected border the ramp bends, by less than a pixel of the original.
        inner = (slice(shape[0] // 5, -shape[0] // 5), slice(2, -2))
        torch.testing.assert_close(resized[inner], expected[inner], atol=1e-5, rtol=0)
        assert (resized - expected).abs().max() < 1 / 20 + 2 / 24

    def test_enlarging_is_exactly_bilinear(self):
        image = torch.tensor([[[0.0, 1.0], [2.0, 5.0]]])
        expected = torch.tensor([[[0, 0.5, 1], [1, 2, 3], [2, 3.5, 5]]])
        torch.testing.assert_close(resize_images(image, (3, 3)), expected)

    def test_shrinking_does_not_alias(self):
        stripes = torch.arange(64).remainder(2).float().expand(1, 64, 64)
        assert resize_images(stripes, (16, 16)).std() < 0.05

    def test_the_same_size_is_not_touched(self):
        image = torch.rand(1, 6, 8)
        assert resize_images(image, (6, 8)) is image

    def test_templates_are_resized_before_rounding(self, tmp_path):
        raw = np.zeros((20, 2, 2), np.uint16)
        raw[:, :, 1] = 1000
        atlas = load(tmp_path, raw, (2, 3))
        assert atlas.template[7, 0].tolist() == [0, 128, 255]

    def test_labels_go_to_the_nearest_with_aligned_corners(self, tmp_path):
        ids = np.arange(5 * 6 * 9, dtype=np.int32).reshape(5, 6, 9)
        atlas = load(tmp_path, random_volume(shape=(5, 6, 9)), (4, 5), annotation=ids)
        # round(i · 5 / 3) and round(i · 8 / 4)
        assert (atlas.annotation.numpy() == ids[:, [0, 2, 3, 5]][:, :, [0, 2, 4, 6, 8]]).all()


class TestAnnotation:
    @pytest.mark.parametrize(
        ("dtype", "largest", "kept"),
        [
            (np.uint32, 614454277, torch.int32),
            (np.uint32, 2**32 - 1, torch.int64),
            (np.uint8, 255, torch.int32),
            (np.int64, 614454277, torch.int32),
            (np.int64, 2**40 + 1, torch.int64),
            (">u4", 614454277, torch.int32),
            (np.uint64, 2**63 - 1, torch.int64),
            (np.float32, 2**24, torch.int32),
            (np.float64, 2**53, torch.int64),
        ],
    )
    def test_ids_are_kept_exactly(self, tmp_path, caplog, dtype, largest, kept):
        ids = np.zeros(SHAPE, dtype)
        ids[2, 3, 4], ids[2, 3, 5] = largest, largest - 1
        atlas = load(tmp_path, random_volume(), annotation=ids)
        assert atlas.annotation.dtype == kept
        assert (atlas.annotation.numpy() == ids).all()
        assert ("QuPath" in caplog.text) == (largest >= 2**32)  # which does not open label images of 64 bits

    def test_left_out_when_not_wanted_or_not_there(self, tmp_path):
        path = write_h5(tmp_path / "a.h5", template=random_volume(), annotation=random_volume())
        assert file_atlas(path, image_shape=(6, 8), with_annotation=False).annotation is None
        assert load(tmp_path, random_volume()).annotation is None

    def test_from_a_file_of_its_own_or_under_another_name(self, tmp_path):
        np.save(tmp_path / "t.npy", random_volume())
        ids = random_volume(np.int32) + 7
        path = write_h5(tmp_path / "ids.h5", template=random_volume(), annotation=ids, regions=ids + 1)
        own = file_atlas(tmp_path / "t.npy", image_shape=(6, 8), annotation_path=path)
        assert (own.annotation.numpy() == ids).all()
        named = file_atlas(path, image_shape=(6, 8), annotation="regions")
        assert (named.annotation.numpy() == ids + 1).all()


class TestFiles:
    @pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
    def test_h5(self, tmp_path, suffix):
        path = write_h5(tmp_path / f"my{suffix}", **{"deep/reference": random_volume()})
        atlas = file_atlas(path, image_shape=(6, 8), template="deep/reference", spacing_um=50)
        assert (atlas.template.numpy() == random_volume()).all()
        assert (atlas.name, atlas.extent_um, atlas.image_shape) == ("my", 250, (6, 8))

    @pytest.mark.parametrize("chunks", [(1, 20, 30), (33, 7, 8), (50, 20, 30)])
    def test_h5_of_several_blocks_in_any_chunks(self, tmp_path, chunks):
        raw = random_volume(shape=(50, 20, 30))
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("template", data=raw, chunks=chunks, compression="gzip")
            file.create_dataset("annotation", data=raw, chunks=chunks, compression="gzip")
        atlas = file_atlas(tmp_path / "a.h5", image_shape=(20, 30))
        assert (atlas.template.numpy() == raw).all()
        assert (atlas.annotation.numpy() == raw).all()

    def test_npy(self, tmp_path):
        np.save(tmp_path / "a.npy", random_volume())
        assert (file_atlas(tmp_path / "a.npy", image_shape=(6, 8)).template.numpy() == random_volume()).all()

    @pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
    def test_itk_volumes_have_the_order_of_their_header(self, tmp_path, suffix):
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(random_volume(np.uint16).T))
        assert image.GetSize() == SHAPE
        SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
        ids = SimpleITK.GetImageFromArray(np.ascontiguousarray(random_volume(np.uint32).T + 614454000))
        SimpleITK.WriteImage(ids, str(tmp_path / f"ids{suffix}"))
        atlas = file_atlas(
            str(tmp_path / f"a{suffix}"), image_shape=(6, 8), annotation_path=tmp_path / f"ids{suffix}"
        )
        expected = random_volume() / atlas.intensity_scale * 255
        assert np.abs(atlas.template.numpy() - expected.clip(0, 255)).max() < 0.501
        assert (atlas.annotation.numpy() == random_volume(np.int64) + 614454000).all()

    @pytest.mark.parametrize("suffix", [".tif", ".tiff"])
    def test_tif_has_a_plane_on_each_page(self, tmp_path, suffix):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(random_volume()), str(tmp_path / f"a{suffix}"))
        atlas = file_atlas(tmp_path / f"a{suffix}", image_shape=(6, 8))
        assert (atlas.template.numpy() == random_volume()).all()

    @pytest.mark.parametrize("suffix", [".npy", ".h5"])
    def test_axes_in_another_order(self, tmp_path, suffix):
        raw = random_volume()  # AP, DV, ML
        turned = raw.transpose(2, 0, 1)
        if suffix == ".npy":
            np.save(tmp_path / "a.npy", turned)
        else:
            write_h5(tmp_path / "a.h5", template=turned, annotation=turned)
        atlas = file_atlas(tmp_path / f"a{suffix}", image_shape=(6, 8), axes="ML, AP, DV")
        assert (atlas.template.numpy() == raw).all()
        assert atlas.annotation is None or (atlas.annotation.numpy() == raw).all()


def nan_volume():
    raw = random_volume(np.float32, (20, 6, 8))
    raw[17, 0, 0], raw[18, 0, 0] = np.nan, np.inf
    return raw


class TestRefusals:
    @pytest.mark.parametrize(
        ("template", "message"),
        [
            (np.ones((4, 5)), r"a\.h5\[template\]: expected 3 axes, .* got shape \(4, 5\)"),
            (np.ones((2, 3, 4, 5)), "expected 3 axes"),
            (np.ones((0, 4, 5)), "expected 3 axes"),
            (np.ones((3, 1, 5)), "at least 2×2"),
            (nan_volume(), "finite intensities of at least 0, found nan and 1 more from plane 17 on"),
            (-random_volume(np.int16), "at least 0, found -"),
            (np.full(SHAPE, 7, np.uint16), "every voxel is 7"),
            (np.zeros(SHAPE), "every voxel is 0"),
            (np.ones(SHAPE, bool), "expected integers or floats, got bool"),
            (np.ones(SHAPE, complex), "expected integers or floats, got complex128"),
        ],
    )
    def test_bad_templates(self, tmp_path, template, message):
        with pytest.raises(InputError, match=message):
            load(tmp_path, template, (6, 8))

    @pytest.mark.parametrize(
        ("annotation", "message"),
        [
            (random_volume(shape=(5, 6, 7)), r"expected the template's shape \(5, 6, 8\), got \(5, 6, 7\)"),
            (random_volume(np.float32) + 0.5, "expected integer ids from 0 to 16777216, found .* float32"),
            (np.full(SHAPE, -5, np.int32), "integer ids from 0 .*, found -5"),
            (np.full(SHAPE, 2**63, np.uint64), f"integer ids from 0 .*, found {2**63}"),
            (np.full(SHAPE, 2**24 + 2, np.float32), "integer ids from 0 to 16777216, found 16777218.0"),
            (np.full(SHAPE, np.nan), "integer ids from 0 .*, found nan"),
        ],
    )
    def test_bad_annotations(self, tmp_path, annotation, message):
        with pytest.raises(InputError, match=message):
            load(tmp_path, random_volume(), annotation=annotation)

    def test_missing_datasets(self, tmp_path):
        path = write_h5(tmp_path / "a.h5", **{"average": random_volume(), "more/nissl": random_volume()})
        with pytest.raises(InputError, match="expected a dataset 'template', there are: average, more/nissl"):
            file_atlas(path, image_shape=(6, 8))
        with pytest.raises(InputError, match="expected a dataset 'more', there are: average"):
            file_atlas(path, image_shape=(6, 8), template="more")
        with pytest.raises(InputError, match="expected a dataset 'regions'"):
            file_atlas(path, image_shape=(6, 8), template="average", annotation="regions")

    def test_missing_files_and_strange_suffixes(self, tmp_path):
        with pytest.raises(InputError, match=r"gone\.h5: no such file"):
            file_atlas(tmp_path / "gone.h5", image_shape=(6, 8))
        with pytest.raises(InputError, match=r"a\.png: expected a file that ends in \.h5, \.hdf5, \.npy"):
            file_atlas(tmp_path / "a.png", image_shape=(6, 8))
        np.save(tmp_path / "a.npy", random_volume())
        with pytest.raises(InputError, match=r"ids\.nrrd: no such file"):
            file_atlas(tmp_path / "a.npy", image_shape=(6, 8), annotation_path=tmp_path / "ids.nrrd")

    @pytest.mark.parametrize("suffix", [".h5", ".npy", ".nrrd", ".nii.gz", ".mha", ".tif"])
    @pytest.mark.parametrize("content", [b"", b"not what its name says"])
    def test_unreadable_files(self, tmp_path, suffix, content):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            file_atlas(path, image_shape=(6, 8))

    def test_pickles_are_not_loaded(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
        with pytest.raises(InputError, match="cannot be read"):
            file_atlas(tmp_path / "a.npy", image_shape=(6, 8))

    def test_a_damaged_chunk(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            noise = random_volume(shape=(40, 20, 30))
            data = file.create_dataset("template", data=noise, chunks=(1, 20, 30), compression="gzip")
            offset = data.id.get_chunk_info(35).byte_offset
        with (tmp_path / "a.h5").open("r+b") as file:
            file.seek(offset)
            file.write(b"damage" * 5)
        with pytest.raises(InputError, match="cannot be read from plane 35 on"):
            file_atlas(tmp_path / "a.h5", image_shape=(20, 30))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"image_shape": (1, 8)},
                r"image_shape: expected \(H, W\), whole numbers of at least 2 px, got \(1, 8\)",
            ),
            ({"image_shape": 64}, r"image_shape: expected \(H, W\), .*, got 64"),
            ({"image_shape": [64.7, 96.2]}, r"image_shape: expected \(H, W\), .*, got \(64\.7, 96\.2\)"),
            ({"image_shape": [8]}, "image_shape"),
            ({"spacing_um": 0.0}, "spacing_um: expected more than 0, got 0"),
            ({"axes": "AP,DV"}, "axes: expected .* in the file's order, got 'AP,DV'"),
        ],
    )
    def test_bad_options(self, tmp_path, options, message):
        np.save(tmp_path / "a.npy", random_volume())
        with pytest.raises(InputError, match=message):
            file_atlas(tmp_path / "a.npy", **{"image_shape": (6, 8), **options})


class TestPhantomAtlas:
    def test_covers_the_allen_positions(self):
        atlas = phantom_atlas(image_shape=[20, 30], spacing_um=600)
        assert atlas.template.shape == (22, 20, 30)
        assert (atlas.extent_um, atlas.intensity_scale, atlas.name) == (13200, 255, "phantom")
        assert atlas.annotation.dtype == torch.int32
        assert set(atlas.labels(6600).unique().tolist()) <= {0, *PHANTOM_REGIONS}
        assert atlas.section(13200).shape == (1, 20, 30)

    def test_seed_and_annotation(self):
        first, second = (phantom_atlas(image_shape=(20, 30), spacing_um=1200, seed=seed) for seed in (1, 2))
        assert not torch.equal(first.template, second.template)
        bare = phantom_atlas(image_shape=(20, 30), spacing_um=1200, seed=1, with_annotation=False)
        assert bare.annotation is None
        assert torch.equal(bare.template, first.template)

    @pytest.mark.parametrize("spacing", [0, -100, 37, 20000])
    def test_the_spacing_divides_the_extent(self, spacing):
        with pytest.raises(InputError, match=r"spacing_um: expected (a divisor of 13200|at least 0)"):
            phantom_atlas(image_shape=(20, 30), spacing_um=spacing)


class StandIn:
    """What atlalign uses of BrainGlobeAtlas in version 2."""

    def __init__(self, name, check_latest=True):
        if name == "allen_mouse_100um":
            raise ConnectionError("no internet")
        assert not check_latest
        self.reference = random_volume(np.uint16)
        self.annotation = random_volume(np.uint32) + 614454000
        self.structures = {
            997: {
                "id": 997,
                "acronym": "root",
                "name": "all of it",
                "structure_id_path": [997],
                "rgb_triplet": [255, 255, 254],
            }
        }


class StandIn3(StandIn):
    """The same in version 3, where `reference` is on its way out."""

    @property
    def template(self):
        return random_volume(np.uint16) // 2


class TestAllenAtlas:
    @pytest.fixture(params=[StandIn, StandIn3])
    def brainglobe(self, request, monkeypatch):
        module = ModuleType("brainglobe_atlasapi")
        module.BrainGlobeAtlas = request.param
        monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", module)
        return request.param

    def test_comes_from_brainglobe(self, brainglobe, caplog):
        with caplog.at_level("INFO"):
            atlas = allen_atlas(image_shape=(6, 8), resolution_um=50)
        assert "allen_mouse_50um" in caplog.text
        assert "BrainGlobe" in caplog.text
        raw = random_volume() // (2 if brainglobe is StandIn3 else 1)
        assert np.abs(atlas.template.numpy() - (raw / atlas.intensity_scale * 255).clip(0, 255)).max() < 0.501
        assert (atlas.annotation.numpy() == random_volume(np.int64) + 614454000).all()
        assert (atlas.spacing_um, atlas.name) == (50, "allen_mouse_50um")
        assert atlas.ontology is not None
        assert list(atlas.ontology) == [Region(997, "root", "all of it", (997,), (255, 255, 254))]
        assert allen_atlas(image_shape=(6, 8), with_annotation=False).annotation is None

    def test_offline_error_explains_the_remedy(self, brainglobe):
        with pytest.raises(InputError, match=r"\(no internet\)") as refused:
            allen_atlas(image_shape=(6, 8), resolution_um=100)
        said = str(refused.value)
        assert "average_template/average_template_100.nrrd" in said
        assert "annotation/ccf_2017/annotation_100.nrrd" in said
        assert "download.alleninstitute.org/informatics-archive/current-release/mouse_ccf" in said
        assert (
            "atlas=file atlas.path=average_template_100.nrrd atlas.annotation_path=annotation_100.nrrd"
            in said
        )

    def test_offline_error_names_the_options_of_the_command(self, monkeypatch, tmp_path, capsys):
        module = ModuleType("brainglobe_atlasapi")
        module.BrainGlobeAtlas = lambda *_, **__: StandIn("allen_mouse_100um", check_latest=False)
        monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", module)
        (tmp_path / "a.png").touch()
        for command, out in (("register", "out"), ("locate", "out.json")):
            assert main([command, str(tmp_path / "a.png"), "--out", str(tmp_path / out)]) == 1
            said = capsys.readouterr().err
            assert "--atlas average_template_25.nrrd --annotation annotation_25.nrrd" in said
            assert "atlas=file" not in said

    def test_resolutions_that_exist(self, brainglobe):
        with pytest.raises(InputError, match="expected 10, 25, 50 or 100, got 20"):
            allen_atlas(image_shape=(6, 8), resolution_um=20)

    def test_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", None)
        with pytest.raises(InputError, match=r"pip install 'atlalign-torch\[allen\]'"):
            allen_atlas(image_shape=(6, 8))


@pytest.mark.parametrize("option", ["phantom", "file", "allen"])
def test_configs_hold_every_argument_with_the_default_for_training(option):
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    package, function = config.pop("_target_").rsplit(".", 1)
    assert package == atlas_module.__name__
    parameters = inspect.signature(getattr(atlas_module, function)).parameters
    required = {"path": "???", "image_shape": "${data.image_shape}", "with_annotation": False}
    assert config == {n: required.get(n, p.default) for n, p in parameters.items()}


def test_the_real_atlas(test_data):
    atlas = file_atlas(test_data / "allen_ccf_25um.h5", image_shape=(20, 29), with_annotation=False)
    assert atlas.template.shape == (528, 20, 29)
    assert atlas.extent_um == 13200
    # The 99.9th percentile of all voxels above 0, by numpy.
    assert atlas.intensity_scale == 303
    # From front to back: nothing, the olfactory bulbs, the widest part.
    bright = (atlas.template > 60).float().mean(dim=(1, 2))
    assert bright[0] == 0
    assert 0.05 < bright[40] < 0.2 < 0.5 < bright[290]


@pytest.mark.slow
def test_the_ids_of_the_real_atlas(test_data):
    atlas = file_atlas(test_data / "allen_ccf_25um.h5", image_shape=(320, 456))
    assert atlas.annotation.dtype == torch.int32
    # In float32 there would be 619.
    assert len(atlas.annotation.unique()) == 672
    assert atlas.annotation.max() == 614454277
    with h5py.File(test_data / "allen_ccf_25um.h5") as file:
        assert (atlas.labels(13200)[0].numpy() == file["annotation"][527]).all()
        assert (atlas.labels(6612)[0].numpy() == file["annotation"][264]).all()
