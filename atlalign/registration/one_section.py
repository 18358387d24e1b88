"""The check that an image shows one section, which `register` and `locate` require."""

import shlex
from pathlib import Path

from atlalign.errors import InputError
from atlalign.io.pieces import find_sections, rejected_in_words
from atlalign.recognition.counting import Seen, count_sections
from atlalign.registration.options import ReadingOptions
from atlalign.registration.section import Section


def check_is_one(section: Section, options: ReadingOptions, path: Path) -> None:
    """Raise an error if an image shows no section, or several, which together fit no plane.

    Args:
        section: The image.
        options: The options with which it was read; `one_section` skips the check.
        path: Its file, for the message.
    """
    if options.one_section:
        return
    seen = Seen.of(section.grey)
    found = find_sections(seen.image, is_color=False, background="dark")
    if not found.number:
        pieces = rejected_in_words([piece.reason for piece in found.left_out])
        raise InputError(
            f"{path.name}: expected a section, found {pieces}: use --one-section if this is tissue"
        )
    count = count_sections(seen)
    if count > 1:
        raise InputError(
            f"{path.name}: expected one section, found {count}: separate them ({_command(section, options, path)}), "
            "or use --one-section if all pieces belong to one section"
        )


def _command(section: Section, options: ReadingOptions, path: Path) -> str:
    """Return the command that separates the sections of an image."""
    size_um = options.pixel_size_um
    size = f"--pixel-size-um {size_um:g} " if size_um else "" if section.pixel_um else "--pixel-size-um UM "
    return f"atlalign sections {shlex.quote(str(path))} {size}--out FOLDER"
