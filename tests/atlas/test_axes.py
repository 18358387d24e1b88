"""The size of an atlas's voxels and the way its axes run, by its header, the user's word and the look of the brain."""

import json

import h5py
import numpy as np
import pytest
import SimpleITK
import tifffile

from atlalign.atlas.atlas import file_atlas
from atlalign.atlas.axes import oriented, parse_axes
from atlalign.atlas.phantom import phantom_volume
from atlalign.declarations import interface
from atlalign.errors import InputError

UM = 400.0
BRAIN = phantom_volume(shape=(33, 20, 28), seed=0)[0]
PIR = (0, 0, -1, 1, 0, 0, 0, -1, 0)  # posterior, inferior, right, in ITK's (left, posterior, superior)
RAS = (-1, 0, 0, 0, -1, 0, 0, 0, 1)


@pytest.fixture(scope="module")
def brain():
    """A phantom whose left differs from its right."""
    left = np.linspace(1, 0.8, BRAIN.shape[2])
    return (BRAIN * left).astype(np.uint8)


def write_itk(path, volume, spacing, direction=None):
    """Write a volume whose axes have the order of the header."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T))
    image.SetSpacing(spacing if isinstance(spacing, tuple) else (spacing,) * 3)
    if direction is not None:
        image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path))
    return path


def egg():
    """Return a brain of no known animal, (AP, DV, LR): a thick front, a flat bottom, two equal halves."""
    ap, dv, ml = np.meshgrid(
        np.linspace(-1, 1, 36), np.linspace(-1, 1, 28), np.linspace(-1, 1, 40), indexing="ij"
    )
    inside = (ap / 0.95) ** 2 + (dv / (0.9 - 0.4 * ap * (ap > 0))) ** 2 + (ml / (0.9 - 0.4 * ap)) ** 2 < 1
    return (inside * (dv < 0.4) * (150 - 40 * ap + 60 * (ap < -0.3) * (dv < 0))).astype(np.uint8)


def ome_of(volume, size, unit):
    """Return the OME metadata of a volume."""
    pages, rows, columns = volume.shape
    sizes = "".join(f' PhysicalSize{axis}="{size}" PhysicalSize{axis}Unit="{unit}"' for axis in "XYZ")
    return (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYZCT" Type="uint8" SizeX="{columns}" SizeY="{rows}" SizeZ="{pages}" SizeC="1" SizeT="1"'
        f"{sizes}><TiffData/></Pixels></Image></OME>"
    )


def write_ome(path, volume, size, unit):
    tifffile.imwrite(path, volume, metadata=None, description=ome_of(volume, size, unit).encode())


def check_is_brain(atlas, brain):
    assert (atlas.template.numpy() == brain).all()
    assert (atlas.spacing_um, atlas.pixel_um, atlas.origin_um) == (UM, (UM, UM), (UM / 2, UM / 2))


class TestSpacing:
    @pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
    @pytest.mark.parametrize("spacing", [UM, UM / 1000], ids=["um", "mm"])
    def test_the_header_s_size_in_um_or_mm(self, tmp_path, brain, suffix, spacing):
        check_is_brain(file_atlas(write_itk(tmp_path / f"a{suffix}", brain, spacing)), brain)

    @pytest.mark.parametrize(
        ("fields", "um"),
        [
            ('spacings: 3 3 3\nunits: "microns" "microns" "microns"', 3),
            (
                'space dimension: 3\nspace directions: (4e4,0,0) (0,4e4,0) (0,0,4e4)\nspace units: "nm" "nm" "nm"',
                40,
            ),
            ('spacings: 0.4 0.4 0.4\nunits: "mm" "mm" "mm"', 400),
            ('spacings: 0.01 0.01 0.01\nunits: "inch" "inch" "inch"', 254),
            ('spacings: 400 400 400\nunits: "µm" "µm" "µm"', 400),
        ],
    )
    def test_units_of_nrrd(self, tmp_path, brain, fields, um):
        sizes = " ".join(map(str, brain.shape))
        header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\n{fields}\nencoding: raw\n\n"
        (tmp_path / "a.nrrd").write_bytes(header.encode() + brain.tobytes(order="F"))
        assert file_atlas(tmp_path / "a.nrrd", axes="AP,DV,ML").spacing_um == um

    def test_voxels_need_not_be_cubes(self, tmp_path, brain):
        turned = brain[::2].transpose(2, 0, 1)
        atlas = file_atlas(write_itk(tmp_path / "a.nrrd", turned, (300.0, 800.0, 400.0)), axes="ML,AP,DV")
        assert (atlas.spacing_um, atlas.pixel_um, atlas.origin_um) == (800, (300, 400), (150, 200))

    def test_tiff(self, tmp_path, brain):
        sizes = {"spacing": UM, "unit": "um", "axes": "ZYX"}
        tifffile.imwrite(tmp_path / "a.tif", brain, imagej=True, resolution=(1 / UM,) * 2, metadata=sizes)
        check_is_brain(file_atlas(tmp_path / "a.tif"), brain)
        in_mm = {f"PhysicalSize{axis}": UM / 1000 for axis in "XYZ"}
        in_mm |= {f"PhysicalSize{axis}Unit": "mm" for axis in "XYZ"}
        tifffile.imwrite(tmp_path / "a.ome.tif", brain, metadata={"axes": "ZYX", **in_mm})
        check_is_brain(file_atlas(tmp_path / "a.ome.tif"), brain)

    @pytest.mark.parametrize("unit", ["micrometre", "um/pixel", r"\u00B5m"])
    def test_units_are_read_in_any_words(self, tmp_path, brain, unit):
        sizes = {"spacing": UM, "unit": unit, "axes": "ZYX"}
        tifffile.imwrite(tmp_path / "a.tif", brain, imagej=True, resolution=(1 / UM,) * 2, metadata=sizes)
        check_is_brain(file_atlas(tmp_path / "a.tif"), brain)

    @pytest.mark.parametrize(("size", "unit"), [("400,0", "µm"), ("0.4", "mm"), ("4e6", "Å")])
    def test_ome(self, tmp_path, brain, size, unit):
        write_ome(tmp_path / "a.ome.tif", brain, size, unit)
        check_is_brain(file_atlas(tmp_path / "a.ome.tif"), brain)

    @pytest.mark.parametrize(
        ("size", "unit", "said"), [("0", "µm", ""), ("1", "pixel", ""), ("400", "furlong", "furlong")]
    )
    def test_unknown_voxel_size_comes_from_the_user(self, tmp_path, brain, caplog, size, unit, said):
        write_ome(tmp_path / "a.ome.tif", brain, size, unit)
        with pytest.raises(InputError, match="give spacing_um"):
            file_atlas(tmp_path / "a.ome.tif")
        check_is_brain(file_atlas(tmp_path / "a.ome.tif", spacing_um=UM), brain)
        assert said in caplog.text

    def test_ome_may_lie_in_a_companion(self, tmp_path, brain, caplog):
        to_companion = '<OME xmlns="x"><BinaryOnly MetadataFile="b.companion.ome" UUID="urn:uuid:1"/></OME>'
        tifffile.imwrite(tmp_path / "a.ome.tif", brain, metadata=None, description=to_companion)
        check_is_brain(file_atlas(tmp_path / "a.ome.tif", spacing_um=UM), brain)
        assert "b.companion.ome" in caplog.text
        (tmp_path / "b.companion.ome").write_text(ome_of(brain, "400", "µm"), encoding="utf-8")
        check_is_brain(file_atlas(tmp_path / "a.ome.tif"), brain)

    def test_a_label_before_the_volume_is_left_out(self, tmp_path, brain):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(brain[0, ::2])
            writer.write(brain)
        check_is_brain(file_atlas(tmp_path / "a.tif", spacing_um=UM), brain)

    @pytest.mark.parametrize("name", ["spacing_um", "element_size_um"])
    def test_h5_attributes(self, tmp_path, brain, name):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["template"] = brain
            file["template"].attrs[name] = [UM] * 3
        check_is_brain(file_atlas(tmp_path / "a.h5"), brain)

    def test_brainglobe_s_metadata(self, tmp_path, brain):
        metadata = {"orientation": "asr", "resolution": [UM, UM, UM]}
        (tmp_path / "metadata.json").write_text(json.dumps(metadata))
        tifffile.imwrite(tmp_path / "reference.tiff", brain[:, :, ::-1])
        check_is_brain(file_atlas(tmp_path / "reference.tiff"), brain)

    def test_the_user_may_repeat_the_header_but_not_contradict_it(self, tmp_path, brain):
        path = write_itk(tmp_path / "a.nrrd", brain, UM)
        check_is_brain(file_atlas(path, spacing_um=400), brain)
        with pytest.raises(InputError, match=r"a\.nrrd.*voxels of 25 µm.*spacing_um.*400 µm"):
            file_atlas(path, spacing_um=25)

    def test_the_annotation_s_header_may_not_contradict_the_template_s(self, tmp_path, brain):
        path = write_itk(tmp_path / "a.nrrd", brain, UM)
        ids = write_itk(tmp_path / "ids.nrrd", brain, 200.0)
        with pytest.raises(InputError, match=r"ids\.nrrd.*voxels of 400 µm.*found 200 µm"):
            file_atlas(path, annotation_path=ids)

    def test_impossible_sizes(self, tmp_path, brain):
        with pytest.raises(InputError, match=r"a\.mha.*voxels of 0\.1 to 5000 µm.*25000 µm"):
            file_atlas(write_itk(tmp_path / "a.mha", brain, 25000.0))

    def test_without_a_header_25_um_is_taken_unless_a_brain_had_another_size(self, tmp_path, brain):
        np.save(tmp_path / "noise.npy", np.random.default_rng(0).integers(0, 9, brain.shape))
        assert file_atlas(tmp_path / "noise.npy").spacing_um == 25
        np.save(tmp_path / "brain.npy", brain)
        with pytest.raises(
            InputError, match=r"brain\.npy.*at 25 µm its tissue would be 0\.8 mm long.*spacing_um"
        ):
            file_atlas(tmp_path / "brain.npy")
        check_is_brain(file_atlas(tmp_path / "brain.npy", spacing_um=UM), brain)


class TestAxes:
    @pytest.mark.parametrize(
        ("axes", "turned"),
        [
            ("AP,DV,ML", lambda v: v),
            ("ML,AP,DV", lambda v: v.transpose(2, 0, 1)),
            ("dv, lr, ap", lambda v: v.transpose(1, 2, 0)),
            ("PA,DV,LR", lambda v: v[::-1]),
            ("RL,PA,VD", lambda v: v[::-1, ::-1, ::-1].transpose(2, 0, 1)),
        ],
    )
    def test_axes_given_by_the_user(self, tmp_path, brain, axes, turned):
        assert (oriented(turned(brain), parse_axes(axes)) == brain).all()
        check_is_brain(file_atlas(write_itk(tmp_path / "a.nrrd", turned(brain), UM), axes=axes), brain)

    @pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
    @pytest.mark.parametrize(
        ("direction", "turned"),
        [
            (PIR, lambda v: v),
            ((0, 0, 1, -1, 0, 0, 0, 1, 0), lambda v: v[::-1, ::-1, ::-1]),
            (RAS, lambda v: v[::-1, ::-1].transpose(2, 0, 1)),
        ],
    )
    def test_axes_from_the_header(self, tmp_path, brain, suffix, direction, turned):
        path = write_itk(tmp_path / f"a{suffix}", turned(brain), UM / 1000, direction)
        check_is_brain(file_atlas(path, annotation_path=path), brain)

    @pytest.mark.parametrize("direction", [None, RAS])
    def test_a_writer_s_default_turns_nothing(self, tmp_path, brain, direction):
        check_is_brain(file_atlas(write_itk(tmp_path / "a.nii", brain, UM, direction)), brain)

    @pytest.mark.parametrize(
        ("turned", "likely"),
        [
            (lambda v: v[::-1], "PA,DV,ML"),
            (lambda v: v[:, ::-1], "AP,VD,ML"),
            (lambda v: v.transpose(2, 0, 1), "ML,AP,DV"),
            (lambda v: v.transpose(1, 2, 0), "DV,ML,AP"),
            (lambda v: v.transpose(1, 0, 2), "DV,AP,ML"),
        ],
    )
    def test_turned_brain_is_refused_with_its_axes(self, tmp_path, brain, turned, likely):
        path = write_itk(tmp_path / "a.nrrd", turned(brain), UM)
        with pytest.raises(InputError, match=rf"a\.nrrd.*looks like {likely}.*axes='{likely}'"):
            file_atlas(path)
        check_is_brain(file_atlas(path, axes=likely), brain)

    @pytest.mark.parametrize("radians", [0.05, 0.3])
    def test_oblique_axes_must_be_given_by_the_user(self, tmp_path, brain, radians):
        cos, sin = np.cos(radians), np.sin(radians)
        path = write_itk(tmp_path / "a.nii", brain, UM / 1000, (cos, -sin, 0, sin, cos, 0, 0, 0, 1))
        with pytest.raises(InputError, match=r"a\.nii.*oblique.*axes='AP,DV,ML'"):
            file_atlas(path)
        check_is_brain(file_atlas(path, axes="AP,DV,ML"), brain)

    def test_template_and_annotation_lie_alike(self, tmp_path, brain):
        path = write_itk(tmp_path / "a.nrrd", brain, UM, PIR)
        ids = write_itk(tmp_path / "ids.nrrd", brain, UM, (0, 0, 1, 1, 0, 0, 0, -1, 0))
        with pytest.raises(InputError, match=r"ids\.nrrd.*AP,DV,LR, found AP,DV,RL.*axes='AP,DV,LR'"):
            file_atlas(path, annotation_path=ids)

    def test_half_a_brain_is_taken_as_it_lies(self, tmp_path, brain):
        half = brain[:, :, :14]
        assert (file_atlas(write_itk(tmp_path / "a.nrrd", half, UM)).template.numpy() == half).all()
        with pytest.raises(InputError, match="LR,AP,DV"):  # which nobody writes by default
            file_atlas(write_itk(tmp_path / "b.nii", half, UM, (-1, 0, 0, 0, 1, 0, 0, 0, -1)))

    @pytest.mark.parametrize(
        ("name", "turned", "likely"),
        [
            ("a.nrrd", lambda v: v.T, ["ML,DV,AP", "RL,AP,VD"]),  # SimpleITK reverses the axes of an array
            ("a.nii", lambda v: v.T, ["ML,DV,AP", "RL,AP,VD"]),
            ("a.npy", lambda v: v.T, ["ML,DV,AP"]),
            ("a.npy", lambda v: v.transpose(0, 2, 1), ["AP,ML,DV"]),
            ("a.npy", lambda v: v.transpose(1, 2, 0), ["DV,ML,AP"]),
        ],
    )
    def test_the_left_mirrors_the_right_in_any_animal(self, tmp_path, name, turned, likely):
        volume = turned(egg())
        path = tmp_path / name
        if name == "a.npy":
            np.save(path, volume)
        else:
            write_itk(path, volume, UM)
        spacing_um = UM if name == "a.npy" else None
        with pytest.raises(InputError, match=r"a\..*along axis") as error:
            file_atlas(path, spacing_um=spacing_um)
        for axes in likely:
            assert f"axes='{axes}'" in str(error.value)
        assert (file_atlas(path, axes=likely[0], spacing_um=spacing_um).template.numpy() == egg()).all()

    def test_an_array_as_coronal_planes_first_is_taken_as_it_lies(self, tmp_path):
        assert (file_atlas(write_itk(tmp_path / "a.nrrd", egg(), UM)).template.numpy() == egg()).all()

    def test_axes_that_are_about_as_likely_are_not_reversed(self, tmp_path):
        ap, dv, ml = np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 45, 65)), indexing="ij")
        inside = (ap / 0.9) ** 2 + (dv / 0.8) ** 2 + (ml / 0.9) ** 2 < 1
        lobe = (ap + 0.6) ** 2 + (dv + 0.2) ** 2 + ml**2 < 0.12
        path = write_itk(tmp_path / "a.nrrd", (inside * 120 + lobe * 80).astype(np.uint8).T, UM)
        with pytest.raises(InputError, match="axes='ML,DV,AP'"):
            file_atlas(path)

    def test_axes_of_the_user_that_do_not_mirror_are_a_warning(self, tmp_path, caplog):
        path = write_itk(tmp_path / "a.nrrd", egg(), UM)
        file_atlas(path, axes="AP,DV,ML")
        assert not caplog.records
        file_atlas(path, axes="ML,DV,AP")
        assert "axis 1 ML" in caplog.text

    def test_messages_write_the_option_as_the_user_does(self, tmp_path):
        path = write_itk(tmp_path / "a.nrrd", egg().T, UM)
        for name, written in (("flags", "--axes ML,DV,AP"), ("keys", "atlas.axes=ML,DV,AP")):
            with interface(name), pytest.raises(InputError, match=written):
                file_atlas(path)

    def test_one_line_says_how_the_axes_were_understood(self, tmp_path):
        path = write_itk(tmp_path / "a.nrrd", egg().T, (200.0, 300.0, 400.0))
        said = file_atlas(path, axes="ML,DV,AP", image_shape=(20, 40)).description()
        assert said == "atlas a: 14.4 × 8.4 × 8.0 mm (AP × DV × ML), 36 planes of 400 µm"

    @pytest.mark.parametrize("axes", [["RL", "PA", "VD"], "RL,PA,VD"])
    def test_axes_may_be_a_list(self, axes):
        assert parse_axes(axes) == ("RL", "PA", "VD")

    @pytest.mark.parametrize("axes", ["AP,DV", "AP,DV,XY", "AP,PA,ML", "AP,DV,ML,LR", "", "apd"])
    def test_no_axes(self, axes):
        with pytest.raises(InputError, match=f"axes: expected .*got '{axes}'"):
            parse_axes(axes)

    def test_letters_have_two_meanings(self):
        with pytest.raises(InputError, match=r"'asr'.*AP,DV,RL for BrainGlobe.*PA,VD,LR for .*NIfTI"):
            parse_axes("asr")


class TestSizes:
    def test_terabytes_are_refused_before_anything_is_read(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("template", (10**4, 10**4, 10**4), np.uint8, chunks=(1, 100, 100))
        header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 10000 10000 10000\nencoding: raw\n\n"
        (tmp_path / "a.nrrd").write_text(header)
        mha = "ObjectType = Image\nNDims = 3\nDimSize = 10000 10000 10000\nElementType = MET_UCHAR\n"
        (tmp_path / "a.mha").write_text(mha + "ElementDataFile = LOCAL\n")
        for name in ("a.h5", "a.nrrd", "a.mha"):
            with pytest.raises(InputError, match=rf"{name}.*at most 8 GiB.*10000×10000×10000"):
                file_atlas(tmp_path / name)

    def test_values_in_another_file_are_refused(self, tmp_path, brain):
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["template"] = brain
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["template"] = h5py.ExternalLink("other.h5", "template")
        with pytest.raises(InputError, match=r"a\.h5\[template\].*link to 'other\.h5'"):
            file_atlas(tmp_path / "a.h5", spacing_um=UM)

    @pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
    def test_truncated_files(self, tmp_path, brain, suffix):
        path = write_itk(tmp_path / f"a{suffix}", brain, UM)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(InputError, match=r"a\.\S*: cannot be read"):
            file_atlas(path)

    def test_color_picture_is_refused_as_volume(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30, 3), np.uint8), photometric="rgb")
        with pytest.raises(InputError, match=r"a\.tif.*colours"):
            file_atlas(tmp_path / "a.tif")
