"""The images of sections that are to be located, by brain."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from atlalign.io.files import is_folder
from atlalign.io.images import IMAGE_ENDINGS
from atlalign.io.named_files import is_visible
from atlalign.registration.jobs import Job, find_jobs
from atlalign.registration.options import ReadingOptions


def find_images(
    inputs: Sequence[str | Path], *, images: str | Path | None = None, reading: ReadingOptions | None = None
) -> list[Job]:
    """Return the images to locate; the images of each subfolder are one brain.

    Args:
        inputs: Images, folders of images, and lists of sections, whose positions are not read.
        images: The folder of the images named in lists; None means the folder of each list.
        reading: How the images are read, unless a list says otherwise.

    Raises:
        InputError: If an input is missing, or a list is invalid.

    Example:
        >>> [job] = find_images(["section.tif"], reading=ReadingOptions(background="dark"))
        >>> job.name, job.options["background"]
        ('section', 'dark')
    """
    jobs = find_jobs(_by_brain(inputs), listed=False, images=images)
    options = asdict(reading or ReadingOptions())
    return [job._replace(options={**options, **job.options}) for job in jobs]


def _by_brain(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the inputs with each folder replaced by its subfolders of images, if it has any."""
    found: list[Path] = []
    for path in map(Path, inputs):
        inside = sorted(filter(is_visible, path.iterdir())) if is_folder(path) else []
        folders = [folder for folder in inside if is_folder(folder) and _shows_images(folder)]
        found += [*([path] if not folders or _shows_images(path) else []), *folders]
    return found


def _shows_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_ENDINGS and is_visible(path) for path in folder.iterdir())
