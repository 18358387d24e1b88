"""Slides among the images to register: their sections are separated first."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from atlalign.console import say
from atlalign.errors import InputError
from atlalign.io.files import is_file
from atlalign.io.images import SCANNER_ENDINGS
from atlalign.registration.options import Options
from atlalign.sections.options import SectionsOptions

FOLDER = "slides"
"""The subfolder of the results for the separated sections."""


def with_sections(inputs: Sequence[Path], out: Path, options: Options) -> list[Path]:
    """Return the inputs, with each slide that shows several sections replaced by the list of its sections.

    Only files of slide scanners are separated, and only if no scene or page of them is chosen.

    Args:
        inputs: The user's images, lists and folders.
        out: The folder of results.
        options: The options of the registration.
    """
    from atlalign.recognition.judge import BrainJudge
    from atlalign.sections.listing import LIST
    from atlalign.sections.separate import separate

    if options.scene is not None or options.page is not None or options.one_section:
        return list(inputs)
    chosen = SectionsOptions(pixel_size_um=options.pixel_size_um, background=options.background, z=options.z)
    scans = [path for path in inputs if path.suffix.lower() in SCANNER_ENDINGS and is_file(path)]
    slides = [path for path in scans if _shows_several(path, chosen)]
    if not slides:
        return list(inputs)
    folder = out / FOLDER
    result = separate(
        slides, folder, chosen, judge=BrainJudge(), progress=lambda name: say(f"writing {name}")
    )
    separated = {section.slide for section in result.sections}
    if not separated:
        return list(inputs)
    say(f"{len(result.sections)} sections of {len(separated)} slides: {folder}")
    return [path for path in inputs if path.name not in separated] + [folder / LIST]


def _shows_several(slide: Path, options: SectionsOptions) -> bool:
    """Return whether a slide shows several sections; False if it cannot be read, which its registration will report."""
    from atlalign.sections.separate import count_sections

    with suppress(InputError):
        return count_sections(slide, options) > 1
    return False
