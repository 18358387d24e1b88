"""Images in the formats of cameras and viewers."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from imagecodecs import jpeg2k_encode, png_encode
from PIL import Image

from atlalign.errors import InputError
from atlalign.io.images import read_image, read_labels

COLOR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(320) // 2, np.arange(240)[:, None], 90), axis=2).astype(
    np.uint8
)


def written(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "options"), [("BMP", {}), ("WEBP", {"lossless": True}), ("JPEG2000", {}), ("PNG", {})]
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.svs"])
def test_the_content_says_which_format_it_is(tmp_path, name, kind, options):
    path = put(tmp_path / name, written(Image.fromarray(COLOR), kind, **options))
    assert (read_image(path).pixels == COLOR).all()
    assert read_image(path).pixels.flags.writeable  # as torch wants it


def test_a_jpeg_by_another_name_is_read(tmp_path):
    path = put(tmp_path / "a.png", written(Image.fromarray(SMOOTH), "JPEG"))
    assert np.abs(read_image(path).pixels.astype(int) - SMOOTH).max() < 12


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("encode", [png_encode, lambda a: jpeg2k_encode(a, level=0, reversible=True)])
def test_16_bits_stay_16_bits(tmp_path, channels, encode):
    pixels = np.random.default_rng(1).integers(0, 2**16, (20, 30, channels), dtype=np.uint16)
    if channels == 1:
        pixels = pixels[..., 0]
    found = read_image(put(tmp_path / "a.png", encode(pixels))).pixels
    expected = {1: pixels, 2: pixels[..., 0], 3: pixels, 4: pixels[..., :3]}[channels]
    assert found.dtype == np.uint16
    assert (found == expected).all()


def test_cmyk_becomes_rgb(tmp_path):
    content = written(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(read_image(put(tmp_path / "a.jpg", content)).pixels.astype(int) - SMOOTH).max() < 12


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("opacity", [{}, {"transparency": 0}])
def test_a_palette_is_colour_and_as_labels_its_indices(tmp_path, bits, opacity):
    indices = np.random.default_rng(2).integers(0, 2**bits, (20, 30), dtype=np.uint8)
    image = Image.fromarray(indices, "L").convert("P")
    colours = np.random.default_rng(3).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    image.putdata(indices.ravel())
    image.putpalette(colours.tobytes())
    path = put(tmp_path / "a.png", written(image, "PNG", bits=bits, **opacity))
    assert (read_image(path).pixels == colours[indices]).all()
    assert (read_labels(path) == indices).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_scaled_to_white_and_labels_are_not(tmp_path, bits):
    values = np.arange(2**bits, dtype=np.uint8).repeat(4).reshape(-1, 4)
    path = put(tmp_path / "a.png", few_bits(values, bits))
    assert (read_image(path).pixels == values * (255 // (2**bits - 1))).all()
    assert (read_labels(path) == values).all()


def few_bits(values: np.ndarray, bits: int) -> bytes:
    """Return a PNG in grey of less than 8 bits, which no library here writes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    unpacked = ((values[..., None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)
    rows = np.packbits(unpacked.reshape(len(values), -1), axis=1)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_upright_by_its_exif(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = written(Image.fromarray(SMOOTH), "JPEG", exif=exif, quality=95)
    expected = {
        1: SMOOTH,
        2: SMOOTH[:, ::-1],
        3: SMOOTH[::-1, ::-1],
        4: SMOOTH[::-1],
        5: SMOOTH.swapaxes(0, 1),
        6: np.rot90(SMOOTH, -1),
        7: SMOOTH[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(SMOOTH),
    }[orientation]
    found = read_image(put(tmp_path / "a.jpg", content)).pixels
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() < 12


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("JPEG2000", {}), ("BMP", {}), ("WEBP", {})],
)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_picture_is_refused(tmp_path, kind, options, kept):
    content = written(Image.fromarray(SMOOTH), kind, **options)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        read_image(put(tmp_path / "a.png", content[: int(kept * len(content))]))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_thumbnail_within_does_not_hide_that_the_end_is_missing(tmp_path, progressive):
    thumbnail = written(Image.fromarray(SMOOTH[::4, ::4]), "JPEG")
    content = written(
        Image.fromarray(SMOOTH),
        "JPEG",
        exif=b"Exif\0\0" + thumbnail,
        comment=thumbnail,
        progressive=progressive,
    )
    path = tmp_path / "a.jpg"
    for lost in (2, 200, len(content) // 4):
        with pytest.raises(InputError, match=r"a\.jpg: cannot be read as an image"):
            read_image(put(path, content[:-lost]))
    assert read_image(put(path, content)).pixels.shape == SMOOTH.shape


def test_a_declared_size_beyond_memory_is_refused_before_it_is_allocated(tmp_path):
    import zlib

    content = bytearray(written(Image.fromarray(COLOR[..., 0]), "PNG"))
    content[16:24] = (100_000).to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    with pytest.raises(InputError, match=r"a\.png: expected at most .*100000×100000"):
        read_image(put(tmp_path / "a.png", bytes(content)))


def test_the_limit_of_pillow_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # slides exceed its usual limit, too
    path = put(tmp_path / "a.png", written(Image.fromarray(COLOR), "PNG"))
    assert (read_image(path).pixels == COLOR).all()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"Dear reader,", "not TIFF, PNG, JPEG"),
        (b"ZISRAWFILE" + bytes(90), "CZI"),
        (b"%PDF-1.7 " + bytes(90), "PDF"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"II*\0", ""),
        (b"\xff\xd8\xff", ""),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_no_image_gets_a_reason(tmp_path, name, content, named):
    with pytest.raises(InputError, match=f"{name}: cannot be read as an image: .*{named}"):
        read_image(put(tmp_path / name, content))


def test_a_folder_with_the_name_of_an_image_is_a_folder(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match=r"a\.png: expected an image, found a folder"):
        read_image(tmp_path / "a.png")


def test_medical_formats_are_read_and_keep_their_ids(tmp_path):
    labels = np.array([[0, 2**53 + 1], [997, 2**63 - 1]], np.int64)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), str(tmp_path / "a.nrrd"))
    assert (read_labels(tmp_path / "a.nrrd") == labels).all()


@pytest.mark.parametrize("choice", ["page", "z"])
def test_there_is_one_page_and_one_plane(tmp_path, choice):
    path = put(tmp_path / "a.png", written(Image.fromarray(COLOR), "PNG"))
    assert (read_image(path, **{choice: 0}).pixels == COLOR).all()
    with pytest.raises(InputError, match=rf"--{choice}.* in 0 … 0, got 1"):
        read_image(path, **{choice: 1})


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz", "a.dcm"])
def test_one_plane_of_a_medical_volume_is_an_image(tmp_path, name):
    plane = np.arange(600, dtype=np.uint16).reshape(20, 30)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(plane[None]), str(tmp_path / name))
    assert (read_image(tmp_path / name).pixels == plane).all()


def test_several_planes_of_a_medical_volume_are_refused(tmp_path):
    SimpleITK.WriteImage(SimpleITK.Image([30, 20, 2], SimpleITK.sitkUInt8), str(tmp_path / "a.nrrd"))
    with pytest.raises(
        InputError, match=r"a\.nrrd: expected one image, found a volume of sizes \(30, 20, 2\)"
    ):
        read_image(tmp_path / "a.nrrd")


DPI = 25400 / 1.5  # a microscope's


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize(
    ("dpi", "size_um"),
    [
        ((DPI, DPI / 2), (1.5, 3.0)),
        ((72, 72), None),
        ((96, 96), None),
        ((300, 300), None),
        ((600, 600), None),
    ],
)
def test_a_density_is_a_pixel_size_if_a_microscope_can_have_it(tmp_path, kind, dpi, size_um):
    path = put(tmp_path / "a.png", written(Image.fromarray(SMOOTH), kind, dpi=dpi))
    found = read_image(path).pixel_um
    assert found == (None if size_um is None else pytest.approx(size_um, rel=1e-3))


def test_the_pixel_size_of_a_picture_turns_with_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = written(Image.fromarray(SMOOTH), "JPEG", dpi=(DPI, DPI / 2), exif=exif)
    assert read_image(put(tmp_path / "a.jpg", content)).pixel_um == pytest.approx((3.0, 1.5), rel=1e-3)


@pytest.mark.parametrize("dpi", [(0, 0), (1e9, 1e9)])
def test_absurd_density_gives_no_pixel_size(tmp_path, dpi):
    path = put(tmp_path / "a.png", written(Image.fromarray(SMOOTH), "PNG", dpi=(1, 1)))
    content = path.read_bytes()
    place = content.index(b"pHYs")
    import zlib

    data = b"pHYs" + 2 * min(int(dpi[0] / 0.0254), 2**32 - 1).to_bytes(4) + b"\x01"
    path.write_bytes(content[:place] + data + zlib.crc32(data).to_bytes(4) + content[place + 17 :])
    assert read_image(path).pixel_um is None
