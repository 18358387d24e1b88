"""Generated data: labels that are true, reproducible bytes whatever happens, sentences for mistakes."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from hydra import compose as compose_config
from hydra import initialize_config_dir
from PIL import Image

from atlalign import plots
from atlalign.atlas.planes import Anchoring
from atlalign.cli import main
from atlalign.data import schema
from atlalign.errors import InputError
from atlalign.geometry import (
    AffineSimple,
    affine_simple,
    compose,
    jacobian_determinant,
    smooth_field,
    stays_inside,
    warp,
)
from atlalign.geometry.random_fields import Affine
from atlalign.synthesis import assembly, parts
from atlalign.synthesis import generate as module
from atlalign.synthesis import samples as sample_module
from atlalign.synthesis.assembly import figure_path
from atlalign.synthesis.generate import generate
from atlalign.synthesis.samples import RejectedError, deform, registered_image, sample_generator
from atlalign.synthesis.sources import AnnotatedSource, ImagesSource, Start, _working_map
from atlalign.synthesis.unfinished import UnfinishedError
from tests.conftest import write_h5

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SHAPE = (48, 64)
DEFORMATIONS = sorted(path.stem for path in (CONF / "deformation").glob("*.yaml"))
TINY_POINTS = ["deformation.radius_fraction=0.125", "deformation.anchor.spacing=0.16"]


@pytest.fixture(autouse=True)
def _quick_figure(monkeypatch):
    monkeypatch.setattr(assembly, "_SAMPLES_SHOWN", 1)


def configured(out: Path, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sizes = [f"out={out}", "data.image_shape=[48,64]", "per_original=2"]
        return compose_config("generate", [*sizes, *overrides])


def from_atlas(out: Path, *overrides: str):
    # At this size the phantom's outlines are a pixel wide, and blur.
    sizes = ["source.n_sections=4", "atlas.spacing_um=1100", "max_difference=0.03"]
    return configured(out, *sizes, "deformation=smooth", *overrides)


def blobs(seed: int = 0) -> torch.Tensor:
    """Return a smooth bright image (1, 1, H, W) on a dark ground, wide enough to have edges."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    outline = torch.sigmoid((0.6 - (x**2 + y**2).sqrt()) * 20)
    waves = torch.rand(4, generator=generator) * 4 + 2
    return (outline * (0.6 + 0.3 * torch.sin(waves[0] * x + waves[1]) * torch.cos(waves[2] * y)))[None, None]


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Three sections that are registered by smooth fields of about 4 px."""
    registered = torch.cat([blobs(seed) for seed in range(3)])
    pair = smooth_field(3, SHAPE, mean_fraction=0.02, largest_fraction=0.06, spacing=0.5)
    moving = warp(registered, pair.inverse)
    return write_h5(
        tmp_path / "my.h5",
        n=3,
        shape=SHAPE,
        img=(moving[:, 0] * 255).round().byte().numpy(),
        deltas_xy=pair.dvf.permute(0, 2, 3, 1).half().numpy(),
        inv_deltas_xy=pair.inverse.permute(0, 2, 3, 1).half().numpy(),
        p=np.array([100, 2000, 13200]),
        image_id=np.array([5, 6, 7]),
        dataset_id=np.array([1, 1, 2]),
    )


def test_samples_of_a_file_of_the_phantom_are_the_phantoms_still(tmp_path):
    made = generate(from_atlas(tmp_path / "made.h5", "source.n_sections=1"))
    again = ["source=annotated", "max_difference=1", "max_corrupted_pixels=3000", "deformation=smooth"]
    more = generate(configured(tmp_path / "more.h5", *again, f"source.path={made}"))
    own = write_h5(tmp_path / "own.h5", shape=SHAPE, deltas_xy=np.zeros((6, *SHAPE, 2), np.float16))
    others = generate(configured(tmp_path / "others.h5", *again, f"source.path={own}"))
    assert [schema.atlas_of(path) for path in (made, more, others)] == ["phantom", "phantom", ""]


def write_images(folder: Path) -> Path:
    """Write a folder with a bright-slide section as png, jpg and tif, and their list."""
    folder.mkdir()
    grey = (255 * (1 - blobs())[0, 0]).byte().numpy()
    Image.fromarray(grey).save(folder / "a.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(folder / "b.jpg")
    Image.fromarray(grey.astype(np.uint16) * 100).save(folder / "c.tif")
    rows = ["filename,p,image_id,dataset_id", "a.png,100,11,3", "b.jpg,5000,12,3", "c.tif,13200,13,3"]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder


def stored(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in schema.CONTRACT}


def fields(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    arrays = stored(path)
    return tuple(
        torch.from_numpy(arrays[name]).float().permute(0, 3, 1, 2) for name in ("deltas_xy", "inv_deltas_xy")
    )


def folds_near(dvf: torch.Tensor) -> torch.Tensor:
    folds = (jacobian_determinant(dvf) <= 0)[:, None].float()
    return torch.nn.functional.max_pool2d(folds, 5, stride=1, padding=2)[:, 0] > 0


def numbers(path: Path) -> list[int]:
    """Return the number of each stored sample, which says its original and its random draw."""
    recipe_wanted = json.loads(h5py.File(path, "r").attrs["config"])["per_original"]
    ids = stored(path)["image_id"]
    seen: dict[int, int] = {}
    for image in ids:
        seen[int(image)] = seen.get(int(image), 0) + 1
    assert all(count == recipe_wanted for count in seen.values()), "the test needs files without rejections"
    return list(range(len(ids)))


def assert_true_labels(config, largest_difference: float = 0.01) -> None:
    """Check the defining properties against what the samples were made from."""
    path = generate(config)
    schema.validate(path)
    recipe = module._build_recipe(config)
    dvf, inverse = fields(path)
    for outer, inner in ((dvf, inverse), (inverse, dvf)):
        counted = stays_inside(inner) & ~folds_near(dvf) & ~folds_near(inverse)
        assert counted.float().mean() > 0.7
        assert (compose(outer, inner).norm(dim=1) * counted).max() < 0.1
    images = torch.from_numpy(stored(path)["img"]).float()[:, None] / 255
    largest_change = 0.0
    for place, number in enumerate(numbers(path)):
        original = number // recipe.per_original
        start = recipe.source.start(original, sample_generator(recipe.seed, number))
        registered = registered_image(start)
        seen = stays_inside(dvf[place : place + 1]) & stays_inside(start.dvf)
        after = (warp(images[place : place + 1], dvf[place : place + 1]) - registered).abs()[0][seen]
        before = (images[place : place + 1] - registered).abs()[0][seen]
        assert after.mean() < largest_difference
        largest_change = max(largest_change, float(before.mean()))
        kept = recipe.source.identity(original)
        assert tuple(stored(path)[name][place] for name in ("p", "image_id", "dataset_id")) == kept
    assert largest_change > 0.02, "the deformations are too small for the test to see a wrong one"


# --- labels are true --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p_reg", [0, 1])
@pytest.mark.parametrize("deformation", ["edge_stretching", "smooth"])
def test_more_samples_of_an_annotated_file_have_true_labels(deformation, p_reg, annotated, tmp_path):
    extra = TINY_POINTS if deformation == "edge_stretching" else []
    assert_true_labels(
        configured(
            tmp_path / "more.h5",
            "source=annotated",
            f"source.path={annotated}",
            f"source.p_reg={p_reg}",
            f"deformation={deformation}",
            *extra,
        )
    )


def test_sections_of_an_atlas_have_true_labels(tmp_path):
    assert_true_labels(from_atlas(tmp_path / "a.h5"), largest_difference=0.03)


def test_positions_beyond_the_allen_atlas_are_valid_in_a_file_of_a_longer_one(tmp_path, capsys):
    """Two files, the second one made of the first, from an atlas of 4 planes that is 20 mm long."""
    planes = np.concatenate([(blobs(seed)[0] * 255).byte().numpy() for seed in range(4)])
    np.save(tmp_path / "atlas.npy", planes)
    atlas = [f"atlas.path={tmp_path / 'atlas.npy'}", "atlas.spacing_um=5000", "atlas.with_annotation=false"]
    options = ["atlas=file", *atlas, "source.contrast=null", "source.n_sections=4", "deformation=smooth"]
    first = generate(configured(tmp_path / "a.h5", *options))
    assert stored(first)["p"].max() > 13200
    annotated = ["source=annotated", f"source.path={first}", "deformation=smooth"]
    second = generate(configured(tmp_path / "b.h5", *annotated))
    for path in (first, second):
        assert main(["validate", str(path)]) == 0
        assert main(["validate", str(path), "--extent-um", "13200"]) == 1
    assert "expected positions in [0, 13200]" in capsys.readouterr().err


def test_images_have_true_labels(tmp_path):
    folder = write_images(tmp_path / "sections")
    assert_true_labels(
        configured(
            tmp_path / "i.h5",
            "source=images",
            f"source.path={folder}",
            "source.invert=true",
            "deformation=smooth",
        )
    )


def test_a_sample_that_starts_from_the_moving_image_undoes_its_own_field_as_well(annotated):
    """With no new deformation, the new image is the moving one (p_reg 0) or the registered one (p_reg 1)."""
    nothing = Affine(scale=0, rotation=0, translation_fraction=0, shear=0)
    generator = torch.Generator()
    for p_reg in (0.0, 1.0):
        source = AnnotatedSource(annotated, image_shape=SHAPE, p_reg=p_reg)
        start = source.start(1, generator)
        sample = deform(start, nothing.after(start.before, nothing.draw(start.drawn_on, generator=generator)))
        expected = warp(start.moving, start.dvf) if p_reg else start.moving
        assert np.abs(sample.img / 255 - expected[0, 0].numpy()).mean() < 0.005
        size = np.abs(sample.deltas_xy.astype(np.float32)).max()
        assert size == 0 if p_reg else size > 2
        if not p_reg:
            field = stored(annotated)["deltas_xy"][1].astype(np.float32)
            assert np.abs(sample.deltas_xy - field)[8:-8, 8:-8].max() < 0.1


def test_the_image_is_the_registered_one_seen_through_the_inverse_field():
    """A section that is registered by a rotation, under a shift of 6 px: in the wrong order it would be 2 px off."""
    rotation = AffineSimple(*(torch.tensor([value]) for value in (1.0, 1.0, 0.35, 0.0, 0.0, 0.0)))
    shift = torch.zeros(1, 2, *SHAPE)
    shift[:, 0] = 6.0
    start = Start(blobs(), affine_simple(rotation, SHAPE), blobs(), shift)
    sample = deform(start, shift, max_difference=1.0)
    expected = torch.zeros(SHAPE)
    expected[:, :-6] = registered_image(start)[0, 0, :, 6:]
    wrong = warp(warp(blobs(), shift), start.dvf)[0, 0]
    assert (torch.from_numpy(sample.img) / 255 - expected)[:, :-6].abs().max() < 0.01
    assert (wrong - expected)[:, :-6].abs().max() > 0.2
    assert np.allclose(sample.deltas_xy[:, 6:, 0], -6, atol=0.01)


# --- deformations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFORMATIONS)
def test_every_deformation_is_drawn_by_the_generator_alone(name, tmp_path):
    deformation = module._build_recipe(configured(tmp_path / "x.h5", f"deformation={name}")).deformation
    nowhere = torch.zeros(1, 2, *SHAPE)
    one, again, other = (
        deformation.after(nowhere, deformation.draw(blobs(), generator=torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert (one - other).norm(dim=1).mean() > 0.1


# --- anchored sections ------------------------------------------------------------------------------------------------

# Right to left at 2 µm·12.5 a pixel, as DeepSlice gives it: x falls with s, z falls with t; centre at y = 264.5.
UPRIGHT = np.array([456, 264.5, 320, -456, 0, 0, 0, 0, -320], dtype=np.float64)


def test_the_map_of_an_anchoring_that_covers_the_atlas_mirrors_it():
    """The first atlas voxel centre (0.5, 319.5) lies at s = 1 − 0.5/456, the last image pixel, and t = 0.5/320."""
    mapped = _working_map(Anchoring(UPRIGHT.reshape(3, 3), (320, 456)), (320, 456))[0]
    assert torch.allclose(mapped, torch.tensor([[-1.0, 0, 455], [0, 1, 0]]), atol=1e-4)


def test_an_anchored_image_is_brought_onto_its_plane(tmp_path):
    """An image whose anchoring is twice the atlas wide comes out at twice its size, around the centre."""
    image = np.zeros((320, 456), np.uint8)
    image[150:170, 150:200] = 200
    Image.fromarray(image).save(tmp_path / "a.png")
    wide = np.array([456 + 228, 264.5, 320 + 160, -912, 0, 0, 0, 0, -640.0])
    slices = [{"filename": "a.png", "nr": 4, "width": 456, "height": 320, "anchoring": wide.tolist()}]
    (tmp_path / "sections.json").write_text(
        json.dumps({"target": "ABA_Mouse_CCFv3_2017_25um", "slices": slices})
    )
    shape = "data.image_shape=[320,456]"
    config = configured(tmp_path / "o.h5", "source=images", f"source.path={tmp_path}", shape)
    recipe = module._build_recipe(config)
    placed = recipe.source.start(0, torch.Generator()).moving[0, 0]
    rows, columns = np.nonzero(placed.numpy() > 0.4)
    assert recipe.source.identity(0) == (25 * (527 - 264), 4, 0)
    # Row r lies at voxel row 2r − 159.5, column c, from right to left, at voxel column 682.5 − 2c.
    assert np.allclose((rows.min(), rows.max()), (140.5, 178.5), atol=1)
    assert np.allclose((columns.min(), columns.max()), (284.5, 382.5), atol=1)


def test_an_anchoring_that_was_made_on_a_thumbnail_places_the_full_image(tmp_path):
    Image.fromarray(np.tile(np.arange(512) // 2, (384, 1)).astype(np.uint8)).save(tmp_path / "a.png")
    numbers = [0, 264.5, 320, 456, 0, 0, 0, 0, -320.0]
    entry = {"filename": "a.png", "nr": 1, "height": 48, "width": 64, "anchoring": numbers}
    (tmp_path / "l.json").write_text(json.dumps({"slices": [entry]}))
    source = ImagesSource(tmp_path, image_shape=SHAPE)
    placed = source.start(0, torch.Generator()).moving[0, 0, 24] * 255
    # Column c of the plane lies at the voxel 455·c/63, the share (voxel + ½)/456 and so at a column of 512 pixels.
    columns = ((455 * torch.arange(64) / 63 + 0.5) / 456 * 512 - 0.5) / 2
    assert (placed - columns)[4:-4].abs().max() < 0.5


@pytest.mark.parametrize(("dtype", "brightest"), [(np.uint8, 100 / 255), (np.uint16, 1)])
def test_sections_that_are_not_inverted_keep_the_range_of_8_bits(tmp_path, dtype, brightest):
    pixels = np.zeros(SHAPE, dtype)
    pixels[10:30, 20:50] = 100
    tifffile.imwrite(tmp_path / "dim.tif", pixels)
    (tmp_path / "list.csv").write_text("filename,p\ndim.tif,4000\n")
    moving = ImagesSource(tmp_path, image_shape=SHAPE).start(0, torch.Generator()).moving
    torch.testing.assert_close(moving[0, 0], torch.from_numpy(pixels / 100 * brightest).float())


def test_real_sections_lie_on_their_atlas_planes(test_data, tmp_path):
    """Placed by their anchoring, tissue covers the atlas's tissue; mirrored or only resized, it does so less."""
    overlaps = {}
    with h5py.File(test_data / "allen_ccf_25um.h5", "r") as file:
        for place in (True, False):
            config = configured(
                tmp_path / "o.h5", "source=images", f"source.path={test_data / 'sections'}",
                "source.invert=true", f"source.place={place}", "data.image_shape=[160,228]",
            )  # fmt: skip
            source = module._build_recipe(config).source
            dice = []
            for number in (4, 8, 12):
                section = source.start(number, torch.Generator()).moving[0, 0].numpy() > 0.1
                atlas = file["template"][source.identity(number).position_um // 25][::2, ::2] > 30
                dice.append(2 * (section & atlas).sum() / (section.sum() + atlas.sum()))
            overlaps[place] = np.mean(dice)
    assert overlaps[True] > 0.9
    assert overlaps[True] > overlaps[False] + 0.03


# --- what real sections are like --------------------------------------------------------------------------------------


def samples(tmp_path: Path, name: str, *overrides: str) -> dict[str, np.ndarray]:
    with h5py.File(generate(from_atlas(tmp_path / f"{name}.h5", *overrides)), "r") as file:
        return {key: file[key][:] for key in ("img", "deltas_xy", "p", "image_id")}


def test_errors_in_position_and_damage_change_nothing_else(tmp_path):
    lenient = ["max_difference=0.2", "source.n_sections=3"]
    plain = samples(tmp_path, "plain", *lenient)
    off = samples(tmp_path, "off", *lenient, "source.damage=null")
    assert all(np.array_equal(plain[key], off[key]) for key in plain)
    worn = samples(
        tmp_path, "worn", *lenient, "source.position_error_um=3000", "source.damage.p_half=1",
        "source.damage.p_holes=1",
    )  # fmt: skip
    assert np.array_equal(plain["deltas_xy"], worn["deltas_xy"])
    assert np.array_equal(plain["image_id"], worn["image_id"])
    assert len(plain["p"]) == len(worn["p"]) == 6
    errors = worn["p"].astype(int) - plain["p"].astype(int)
    assert np.abs(errors).max() <= 3000
    assert (errors != 0).all()
    assert (np.abs(plain["img"].astype(int) - worn["img"]) > 20).mean(axis=(1, 2)).min() > 0.05


# --- reproducible, whatever happens -----------------------------------------------------------------------------------


def test_the_same_command_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    one, again, other = (
        generate(from_atlas(tmp_path / f"{name}.h5", f"seed={seed}")).read_bytes()
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert one == again
    assert one != other


@pytest.mark.parametrize("stopped_at", [0, 1, 3])
def test_after_a_crash_the_same_command_ends_with_the_same_bytes(stopped_at, tmp_path, monkeypatch):
    whole = generate(from_atlas(tmp_path / "whole.h5")).read_bytes()
    make_part = parts.make_part
    made = []

    def crash(recipe, original, partial):
        if original == stopped_at:
            (partial / f"part-{original:06d}.h5.123").write_bytes(b"half")
            raise KeyboardInterrupt
        make_part(recipe, original, partial)

    def count(recipe, original, partial):
        made.append(original)
        make_part(recipe, original, partial)

    out = tmp_path / "out.h5"
    monkeypatch.setattr(parts, "make_part", crash)
    with pytest.raises(KeyboardInterrupt):
        generate(from_atlas(out))
    assert not out.exists()
    monkeypatch.setattr(parts, "make_part", count)
    assert generate(from_atlas(out)).read_bytes() == whole
    assert made == list(range(stopped_at, 4))
    assert {path.name for path in tmp_path.iterdir()} == {"whole.h5", "whole.png", "out.h5", "out.png"}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_content(path: Path) -> None:
    path.write_bytes(b"")


def with_another_position(path: Path) -> None:
    with h5py.File(path, "a") as part:
        part["p"][0] += 25


def with_other_counts(path: Path) -> None:
    with h5py.File(path, "a") as part:
        part.attrs["rejected"] = "[]"


def with_flipped_bits(path: Path) -> None:
    with h5py.File(path) as part:
        place = part["img"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 40] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [cut_short, without_content, with_another_position, with_other_counts, with_flipped_bits]
)
def test_a_damaged_part_of_an_interrupted_run_is_made_again(damage, tmp_path, monkeypatch, caplog):
    small = ["source.n_sections=2", "per_original=1"]
    whole = generate(from_atlas(tmp_path / "whole.h5", *small)).read_bytes()
    out = tmp_path / "out.h5"

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "publish", crash)
        with pytest.raises(KeyboardInterrupt):
            generate(from_atlas(out, *small))
    damage(tmp_path / "out.h5.partial" / "part-000001.h5")
    assert generate(from_atlas(out, *small)).read_bytes() == whole
    assert "part-000001.h5 is damaged" in caplog.text
    assert "part-000000.h5" not in caplog.text


def test_crash_during_assembly_is_resumed(tmp_path, monkeypatch):
    whole = generate(from_atlas(tmp_path / "whole.h5")).read_bytes()
    append = assembly._append

    def crash(part, file, start):
        if start > 2:
            raise KeyboardInterrupt
        append(part, file, start)

    monkeypatch.setattr(assembly, "_append", crash)
    with pytest.raises(KeyboardInterrupt):
        generate(from_atlas(tmp_path / "out.h5"))
    assert not (tmp_path / "out.h5").exists()
    monkeypatch.setattr(assembly, "_append", append)
    assert generate(from_atlas(tmp_path / "out.h5")).read_bytes() == whole


def test_unfinished_work_of_another_command_is_refused_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "make_part", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        generate(from_atlas(tmp_path / "out.h5"))
    with pytest.raises(InputError, match=r"another command \(deformation.spacing differ"):
        generate(from_atlas(tmp_path / "out.h5", "deformation.spacing=0.5"))
    assert (tmp_path / "out.h5.partial").exists()


@pytest.mark.parametrize("name", ["b.jpg", "list.csv"])
def test_an_image_that_changes_in_the_meantime_is_seen(name, tmp_path, monkeypatch):
    listing = write_images(tmp_path / "sections") / "list.csv"
    config = configured(tmp_path / "out.h5", "source=images", f"source.path={listing}", "deformation=smooth")
    with monkeypatch.context() as patched:
        patched.setattr(parts, "make_part", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(config)
    os.utime(listing.with_name(name), (1, 1))
    with pytest.raises(InputError, match=r"another command \(files differ"):
        generate(config)


def test_processes_do_not_change_the_bytes(tmp_path):
    here = generate(from_atlas(tmp_path / "here.h5"))
    there = generate(from_atlas(tmp_path / "there.h5", "workers=2"))
    assert here.read_bytes() == there.read_bytes()


HOLDER = """
import sys, time
from pathlib import Path
from atlalign.synthesis.unfinished import only_run
with only_run(Path(sys.argv[1])):
    print("holds it", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that is writing out.h5."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out.h5")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "holds it\n"
        yield process
        process.kill()


def test_a_run_beside_another_is_refused_and_changes_nothing(other_run, tmp_path):
    before = sorted(tmp_path.iterdir())
    where = rf"another run, process {other_run.pid} on {socket.gethostname()}, is writing .*out\.h5"
    with pytest.raises(InputError, match=where):
        generate(from_atlas(tmp_path / "out.h5"))
    assert sorted(tmp_path.iterdir()) == before


def test_lock_of_a_killed_run_is_released(other_run, tmp_path):
    other_run.kill()
    other_run.wait()
    assert len(list(tmp_path.iterdir())) == 2
    generate(from_atlas(tmp_path / "out.h5"))
    assert {path.name for path in tmp_path.iterdir()} == {"out.h5", "out.png"}


def test_a_run_that_waited_for_another_does_not_replace_its_file(tmp_path, monkeypatch):
    """The other run ends between the first look at the name and the lock."""
    out = tmp_path / "out.h5"
    build_recipe = module._build_recipe
    monkeypatch.setattr(
        module, "_build_recipe", lambda config: (out.write_bytes(b"made by another"), build_recipe(config))[1]
    )
    with pytest.raises(InputError, match="already exists"):
        generate(from_atlas(out))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.h5": b"made by another"}


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    command = [
        sys.executable, "generate.py", "data.image_shape=[48,64]", "atlas.spacing_um=1100", "deformation=smooth",
        "source.n_sections=40", "per_original=20", "workers=2",
    ]  # fmt: skip
    subprocess.run([*command, f"out={tmp_path / 'whole.h5'}"], cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen([*command, f"out={tmp_path / 'out.h5'}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("out.h5.partial/part-*.h5")):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (tmp_path / "out.h5").exists()
    subprocess.run([*command, f"out={tmp_path / 'out.h5'}"], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


# --- what was rejected ------------------------------------------------------------------------------------------------


def test_rejected_samples_are_counted_and_left_out(tmp_path, capsys):
    """Displacements of half the width fold: some samples are left out, none is replaced."""
    wild = [
        "deformation=control_points",
        "deformation.radius_fraction=0.46",
        "deformation.anchor=null",
        "max_trials=2",
    ]
    path = generate(from_atlas(tmp_path / "a.h5", *wild, "max_corrupted_pixels=5", "per_original=8"))
    with h5py.File(path, "r") as file:
        kept, attributes = len(file["p"]), dict(file.attrs)
    rejected = json.loads(attributes["rejected"])
    assert attributes["wanted"] == 32
    assert 0 < kept == 32 - attributes["left_out"] < 32
    assert 2 * attributes["left_out"] <= sum(rejected.values()) <= 2 * attributes["left_out"] + kept
    assert rejected["a field folds"] > 0
    shown = capsys.readouterr().out
    assert "a field folds" in shown
    assert "left out" in shown
    assert schema.validate(path).n_samples == kept


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_pixel_that_is_not_finite_is_enough(value):
    inverse = torch.zeros(1, 2, *SHAPE)
    inverse[0, 1, 3, 5] = value
    with pytest.raises(RejectedError, match="a field is not finite"):
        deform(Start.registered(blobs()), inverse)


def test_image_that_its_inverse_does_not_restore_is_rejected():
    """White noise under half a pixel is blurred, and blurred again on its way back."""
    noise = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    half = torch.full((1, 2, *SHAPE), 0.5)
    with pytest.raises(RejectedError, match="registered image"):
        deform(Start.registered(noise), half, max_difference=0.1)
    assert deform(Start.registered(blobs()), half, max_difference=0.1)


@pytest.mark.parametrize("wrong", [0, 1])
def test_either_composition_of_the_fields_is_looked_at(wrong, monkeypatch):
    compositions = []

    def residual(outer, inner, *folds):
        compositions.append(float(outer[0, 0, 20, 20]))
        return 0.11 if len(compositions) == 1 + wrong else 0.0

    monkeypatch.setattr(sample_module, "_largest_residual", residual)
    with pytest.raises(RejectedError, match="the fields do not invert each other"):
        deform(Start.registered(blobs()), torch.full((1, 2, *SHAPE), 2.0))
    assert compositions == [-2.0, 2.0][: 1 + wrong]


def test_near_is_two_pixels_around_and_landing_near_is_that_where_a_field_leads():
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[0, 20, 30] = True
    near = torch.zeros_like(mask)
    near[0, 18:23, 28:33] = True
    assert torch.equal(sample_module._near(mask), near)
    dvf = torch.zeros(1, 2, *SHAPE)
    dvf[:, 0], dvf[:, 1] = 7, -3
    assert torch.equal(sample_module._landing_near(mask, dvf), near.roll((3, -7), (1, 2)))


def test_nothing_is_written_when_every_draw_is_rejected(tmp_path):
    wild = ["deformation=control_points", "deformation.radius_fraction=45", "max_corrupted_pixels=1"]
    with pytest.raises(InputError, match=r"every draw was rejected: a field folds \(\d+\)"):
        generate(from_atlas(tmp_path / "a.h5", *wild))
    assert not list(tmp_path.iterdir())


def test_an_image_without_edges_is_rejected_for_that(annotated, tmp_path):
    with h5py.File(annotated, "a") as file:
        file["img"][1] = 0
    path = generate(
        configured(tmp_path / "b.h5", "source=annotated", f"source.path={annotated}", *TINY_POINTS)
    )
    assert set(stored(path)["image_id"].tolist()) == {5, 7}
    with h5py.File(path, "r") as file:
        assert json.loads(file.attrs["rejected"])["too few edges in the image"] == 2 * 5


def test_file_records_its_origin(tmp_path):
    with h5py.File(generate(from_atlas(tmp_path / "a.h5", "seed=3")), "r") as file:
        assert file.attrs["seed"] == 3
        assert json.loads(file.attrs["config"])["deformation"]["spacing"] == 0.15
        versions = json.loads(file.attrs["versions"])
    assert versions["torch"] == version("torch")
    # What does not decide the file's bytes must not change them.
    assert list(versions) == ["python", "atlalign", "torch", "kornia", "h5py", "numpy"]


def test_the_figure_shows_samples(tmp_path):
    path = generate(from_atlas(tmp_path / "a.h5"))
    assert np.asarray(Image.open(figure_path(path))).std() > 10


def write_anchored(folder: Path) -> Path:
    """Write the images of `write_images`, and a list that anchors one of them to the plane at 7212 µm."""
    listing = write_images(folder) / "anchored.json"
    entry = {"filename": "a.png", "nr": 1, "width": SHAPE[1], "height": SHAPE[0]}
    anchoring = {"anchoring": [456, 239, 320, -456, 0, 0, 0, 0, -320]}
    listing.write_text(json.dumps({"slices": [{**entry, **anchoring}]}))
    return listing


@pytest.mark.parametrize("anchored", [True, False])
def test_anchorings_as_truth_give_a_warning(tmp_path, caplog, anchored):
    listing = write_anchored(tmp_path / "images") if anchored else write_images(tmp_path / "images")
    ImagesSource(listing, image_shape=SHAPE)
    assert ("anchorings are taken as the truth" in caplog.text) == anchored


@pytest.mark.parametrize("atlas", ["file", "phantom"])
def test_sections_are_shown_beside_their_planes_of_the_atlas_that_is_given(tmp_path, monkeypatch, atlas):
    planes = np.repeat(np.arange(132, dtype=np.uint8), SHAPE[0] * SHAPE[1]).reshape(132, *SHAPE)
    np.save(tmp_path / "planes.npy", planes)
    file = [f"atlas.path={tmp_path / 'planes.npy'}", "atlas.spacing_um=100"] if atlas == "file" else []
    panels = []
    draw = plots.registration_figure
    monkeypatch.setattr(plots, "registration_figure", lambda shown: panels.extend(shown) or draw(shown))
    images = ["source=images", f"source.path={write_anchored(tmp_path / 'images')}", "source.invert=true"]
    options = [f"atlas={atlas}", *file, "deformation=affine", "max_difference=0.1"]
    path = generate(configured(tmp_path / "a.h5", *images, *options))
    with h5py.File(path, "r") as made:
        plane = made["p"][0] // 100
    (panel,) = panels
    if atlas == "file":
        assert panel.reference.unique().tolist() == pytest.approx([plane / 255])
    else:
        assert (panel.reference - panel.registered).abs().mean() < 0.1


# --- mistakes ---------------------------------------------------------------------------------------------------------


def without(name):
    return lambda folder: write_h5(folder / "my.h5", shape=SHAPE, **{name: None})


def with_nan(folder):
    bad = np.zeros((6, *SHAPE, 2), np.float16)
    bad[3, 0, 0] = np.nan
    return write_h5(folder / "my.h5", shape=SHAPE, inv_deltas_xy=bad)


def of_another_size(folder):
    return write_h5(folder / "my.h5", shape=(64, 64))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (without("deltas_xy"), "deltas_xy: missing"),
        (with_nan, "inv_deltas_xy: expected finite values.*sample 3"),
        (of_another_size, r"data.image_shape=\(48, 64\), found \(64, 64\)"),
        (lambda folder: folder / "none.h5", "no such file"),
    ],
)
def test_a_bad_annotated_file_leaves_nothing(write, message, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = write(tmp_path / "in")
    with pytest.raises(InputError, match=message):
        generate(configured(tmp_path / "out" / "a.h5", "source=annotated", f"source.path={path}"))
    assert not list((tmp_path / "out").iterdir())


def anchored(height: int = 48, width: int = 64, sideways: float = 0.0):
    """Return what replaces the list of a folder by one of a.png alone, which is anchored so."""
    numbers = [456 + sideways, *UPRIGHT[1:].tolist()]
    entry = {"filename": "a.png", "nr": 1, "height": height, "width": width, "anchoring": numbers}

    def spoil(folder: Path) -> None:
        (folder / "list.csv").unlink()
        (folder / "l.json").write_text(json.dumps({"slices": [entry]}))

    return spoil


def sagittal(folder: Path) -> None:
    """Replace the list by one of a.png as a sagittal section: `register` takes it, but samples are coronal."""
    entry = {"filename": "a.png", "nr": 1, "height": 48, "width": 64}
    entry |= {"anchoring": [228, 528, 320, 0, -528, 0, 0, 0, -320]}
    (folder / "list.csv").unlink()
    (folder / "l.json").write_text(json.dumps({"slices": [entry]}))


@pytest.mark.parametrize("place", [True, False])
def test_images_that_cannot_be_placed_may_be_skipped(place, tmp_path):
    folder = write_images(tmp_path / "in")
    anchored(height=64, sideways=3000)(folder)
    arguments = {"image_shape": SHAPE, "place": place}
    if place:
        with pytest.raises(InputError, match=r"l\.json:"):
            ImagesSource(folder, **arguments)
    else:
        assert len(ImagesSource(folder, **arguments)) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "a.png").write_text("no image"), "a.png: cannot be read as an image"),
        (lambda f: (f / "b.jpg").unlink(), "b.jpg: no such file"),
        (lambda f: (f / "list.csv").write_text("filename,p\na.png,13201\n"), "a.png: expected a position"),
        (
            lambda f: (f / "list.csv").write_text("filename,pos\na.png,1\n"),
            "a.png: line 2, p: expected a number, found none",
        ),
        (
            lambda f: (f / "list.csv").write_text("filename,p\na.png,far\n"),
            "a.png: line 2, p: expected a number, found 'far'",
        ),
        (lambda f: (f / "list.csv").write_text("filename,p\na.png,7.2\n"), r"got 7\.2: is that mm"),
        (lambda f: (f / "list.csv").write_text("filename,p\n"), "found no section"),
        (lambda f: (f / "list.csv").unlink(), "expected one list of sections"),
        (
            lambda f: (f / "list.csv").rename(f / "l.json").write_text('{"slices":[{"filename":"a.png"}]}'),
            "a.png: anchoring: expected nine numbers, found none",
        ),
        (anchored(height=1), r"a.png: anchoring: expected an image of at least 2×2 px, found 1×64"),
        (
            anchored(width=0),
            "a.png: expected the width and height of the anchored image in pixels, found no width",
        ),
        (anchored(height=64), r"a.png: expected the proportions of .* 64×64 px, found 48×64 px"),
        (sagittal, "a.png: anchoring: expected a coronal section, found a sagittal one"),
        (anchored(sideways=3000), "a.png: anchoring: expected an image that shows a part of the atlas"),
        (anchored(sideways=np.nan), "a.png: anchoring: expected a number, found 'nan'"),
        (lambda f: (f / "list.csv").rename(f / "l.json").write_text("{"), "expected a list of sections"),
    ],
)
def test_a_bad_list_of_images_leaves_nothing(spoil, message, tmp_path):
    folder = write_images(tmp_path / "in")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        generate(configured(tmp_path / "out" / "a.h5", "source=images", f"source.path={folder}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("atlas.with_annotation=false", "holds no annotation"),
        ("source.contrast.noise=[2,1]", "contrast.noise"),
        ("source.n_sections=0", "n_sections"),
        ("source.position_error_um=-1", "source.position_error_um: expected at least 0"),
        ("source.damage.p_cut=2", "damage.p_cut: expected a probability"),
        ("source.damage.p_cut=abc", r"damage.p_cut: expected a probability in \[0, 1\], got abc"),
        ("source.contrast.p_bright=abc", r"contrast.p_bright: expected a probability in \[0, 1\], got abc"),
        ("per_original=0", "per_original: expected at least 1, got 0"),
        ("seed=-1", "seed: expected at least 0"),
        ("max_difference=abc", "max_difference: expected a number, got abc"),
        ("workers=-1", "workers: expected at least 0"),
        ("out=my.txt", "ends in .h5"),
        ("deformation.largest_fraction=-1", "largest_fraction"),
        (
            "deformation.largest_fraction=inf",
            "deformation.largest_fraction: expected a finite number, got inf",
        ),
        (f"seed={2**63}", "seed: expected a whole number, got 9223372036854775808"),
        ("source.seed=-1", "source.seed: expected at least 0, got -1"),
        ("out=null", "out: expected .*, got None"),
        ("source.n_sections=2.5", "source.n_sections: expected a whole number, got 2.5"),
        ("source.contrast.n_groups=8", r"contrast.n_groups: expected \[from, to\] .*, got 8"),
        ("data.image_shape=64", r"image_shape: expected .*, got 64"),
    ],
)
def test_a_bad_value_is_a_sentence(override, message, tmp_path):
    with pytest.raises(InputError, match=message):
        generate(from_atlas(tmp_path / "a.h5", override))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("deformation.n_points=2.5", "deformation.n_points: expected a whole number, got 2.5"),
        ("deformation.radius_fraction=abc", "deformation.radius_fraction: expected a number, got abc"),
        ("deformation.factor_mean=abc", "deformation.factor_mean: expected a number, got abc"),
        ("deformation.anchor.spacing=abc", "deformation.anchor.spacing: expected a number, got abc"),
        ("deformation.anchor.h_kept=abc", "deformation.anchor.h_kept: expected a number, got abc"),
        (
            "deformation.anchor.w_kept=1.5",
            "deformation.anchor.w_kept: expected a share above 0 and at most 1",
        ),
        ("deformation.function=gaussian", "deformation.function: expected .*linear.*thin_plate"),
    ],
)
def test_a_bad_value_of_a_stretching_is_a_sentence(override, message, tmp_path):
    with pytest.raises(InputError, match=message):
        generate(configured(tmp_path / "a.h5", "atlas.spacing_um=1100", override))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 1])
def test_an_unforeseen_error_leaves_the_parts_that_are_finished_alone(after, tmp_path, monkeypatch):
    make_part = parts.make_part

    def fail(recipe, original, partial):
        if original == after:
            raise KeyError("unforeseen")
        make_part(recipe, original, partial)

    monkeypatch.setattr(parts, "make_part", fail)
    with pytest.raises(KeyError):
        generate(from_atlas(tmp_path / "a.h5"))
    assert len(list(tmp_path.glob("a.h5.partial/part-*.h5"))) == after
    assert (tmp_path / "a.h5.partial").exists() == (after > 0)


def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        generate(from_atlas(tmp_path / "a.h5"))
    assert not list(tmp_path.iterdir())


def test_parts_beside_their_finished_file_go_with_the_next_call_and_others_stay(tmp_path, monkeypatch):
    out, partial = tmp_path / "a.h5", tmp_path / "a.h5.partial"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(from_atlas(out))
    shutil.copytree(partial, tmp_path / "copy")
    with pytest.raises(InputError, match="already exists"):
        generate(from_atlas(out))
    assert not partial.exists()
    (tmp_path / "copy").rename(partial)
    write_h5(out)
    with pytest.raises(InputError, match="already exists"):
        generate(from_atlas(out))
    assert partial.exists()


def test_existing_file_is_not_overwritten(tmp_path):
    out = tmp_path / "a.h5"
    for path in (out, figure_path(out)):
        path.write_text("mine")
        with pytest.raises(InputError, match="already exists"):
            generate(from_atlas(out))
        assert path.read_text() == "mine"
        path.unlink()


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: .*file is not a folder"):
        generate(from_atlas(tmp_path / "file" / "a.h5"))


def test_a_full_disk_is_a_sentence_and_the_work_is_kept(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(UnfinishedError, match=r"the disk is full.* repeat the command"):
        generate(from_atlas(tmp_path / "a.h5"))
    assert len(list(tmp_path.glob("a.h5.partial/part-*.h5"))) == 4
    monkeypatch.undo()
    assert generate(from_atlas(tmp_path / "a.h5")).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sizes of files have no limit there")
def test_a_disk_that_refuses_while_the_file_is_assembled_leaves_the_parts(tmp_path):
    """As under a quota, which the free space of the disk does not show."""
    import resource

    generate(from_atlas(tmp_path / "whole.h5"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "whole.h5").stat().st_size // 2, before[1]))
    try:
        with pytest.raises(
            UnfinishedError, match=r"a.h5: writing failed \(File too large\): .* repeat the command"
        ):
            generate(from_atlas(tmp_path / "a.h5"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = {path.name.partition("-")[0] for path in (tmp_path / "a.h5.partial").iterdir()}
    assert names == {"part", "request.json"}
    assert generate(from_atlas(tmp_path / "a.h5")).exists()


# --- the command line -------------------------------------------------------------------------------------------------


def test_help_names_every_option():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose_config("generate", return_hydra_config=True)
    shown = config.hydra.help.header + config.hydra.help["template"]
    for group in ("source", "deformation", "atlas"):
        options = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        assert f"{group}: {options}" in shown
