"""The check that an image shows one section, which `register` and `locate` require."""

from collections.abc import Callable
from pathlib import Path

from atlalign.errors import InputError
from atlalign.io.pieces import several_sections
from atlalign.io.scenes import Scene
from atlalign.io.views import overview
from atlalign.registration.options import ReadingOptions

_OVERVIEW = (320, 456)  # enough to tell sections apart


def check_is_one(
    channel: Scene, options: ReadingOptions, path: Path, *, also_two: Callable[[], bool] = lambda: False
) -> None:
    """Raise an error if the image shows several sections, which together fit no plane.

    Args:
        channel: The image.
        options: How the image is read; `one_section` skips the check.
        path: Its file, for the message.
        also_two: Called if the outlines of the pieces are ambiguous; returns whether two of them are sections.
    """
    if options.one_section:
        return
    count = _clear_count(channel, options.pixel_size_um)
    if count == 1 and also_two():
        count = 2
    if count > 1:
        raise InputError(
            f"{path.name}: expected one section, found {count}: separate them (atlalign sections {path} --out FOLDER), "
            "or use --one-section if all pieces belong to one section"
        )


def _clear_count(channel: Scene, pixel_size_um: float | None) -> int:
    """Return the number of sections that the outlines of the pieces show; 1 if they are ambiguous."""
    view = overview(channel, _OVERVIEW)
    x, y = channel.pixel_um or (pixel_size_um, pixel_size_um)
    known = pixel_size_um or (None if x is None or y is None else (x + y) / 2)
    return several_sections(
        view.pixels[:, :],
        is_color=channel.is_color,
        pixel_um=None if known is None else known * sum(view.scale) / 2,
    )
