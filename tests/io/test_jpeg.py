"""Damage inside JPEG data, in files of its own and in TIFF."""

from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from atlalign.errors import InputError
from atlalign.io.images import read_image
from atlalign.io.jpeg import check_jpeg

_NOISE = gaussian_filter(np.random.default_rng(0).random((120, 160)), 3)
PIXELS = (255 * (_NOISE - _NOISE.min()) / np.ptp(_NOISE)).astype(np.uint8)


def encoded(mode: str = "L", **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def without_sector(content: bytes, start: int, size: int = 512) -> bytes:
    return content[:start] + bytes(size) + content[start + size :]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_lost_bytes_within_are_refused(tmp_path, mode, options):
    content = encoded(mode, **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert read_image(path).pixels.shape[:2] == PIXELS.shape
    for share in (0.3, 0.5, 0.7):
        path.write_bytes(without_sector(content, int(share * len(content))))
        with pytest.raises(InputError, match=r"a\.jpg: .*damaged"):
            read_image(path)


def test_flipped_bits_that_change_the_picture_visibly_are_mostly_found():
    content, random = encoded(), np.random.default_rng(1)
    whole = np.array(Image.open(BytesIO(content))).astype(float)
    visible, found = 0, 0
    for _ in range(100):
        changed = bytearray(content)
        changed[random.integers(700, len(content) - 2)] ^= 1 << int(random.integers(8))
        try:
            differs = np.abs(np.array(Image.open(BytesIO(changed))) - whole).mean() > 3
        except OSError:
            continue
        visible += bool(differs)
        try:
            check_jpeg(bytes(changed))
        except InputError:
            found += bool(differs)
    assert visible >= 20
    assert found / visible > 0.7  # the rest are valid JPEG data of another picture


@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"rowsperstrip": 32}])
def test_a_damaged_tile_of_a_tiff_is_refused(tmp_path, layout):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, compression="jpeg", **layout)
    assert np.abs(read_image(path).pixels.astype(int) - PIXELS).max() < 30
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[1], page.databytecounts[1]
    content = path.read_bytes()
    path.write_bytes(without_sector(content, start + size // 2, size // 4))
    with pytest.raises(InputError, match=r"a\.tif: .*damaged"):
        read_image(path)


def test_tiles_with_shared_tables_are_checked(tmp_path):
    """libtiff and slide scanners store the tables once, for all tiles."""
    content = encoded()
    scan = content.index(b"\xff\xda")
    frame = content.index(b"\xff\xc0")
    length = int.from_bytes(content[frame + 2 : frame + 4])
    header = content[frame : frame + 2 + length]
    tables = content[:frame] + content[frame + 2 + length : scan] + b"\xff\xd9"
    for damage, is_whole in ((0, True), (512, False)):
        data = content[scan:]
        data = data[:1000] + bytes(damage) + data[1000 + damage :]
        tile = b"\xff\xd8" + header + data
        path = tmp_path / "a.tif"
        with tifffile.TiffWriter(path) as file:
            file.write(
                iter([tile]),
                shape=PIXELS.shape,
                dtype=np.uint8,
                rowsperstrip=len(PIXELS),
                compression="jpeg",
                photometric="minisblack",
                extratags=[(347, 7, len(tables), tables, True)],
            )
        if is_whole:
            assert np.abs(read_image(path).pixels.astype(int) - PIXELS).max() < 30
        else:
            with pytest.raises(InputError, match="damaged"):
                read_image(path)
