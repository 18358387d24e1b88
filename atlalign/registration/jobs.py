"""What is to be registered: the images that files, folders and lists of sections name."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, get_args

from atlalign.atlas.planes import Anchoring, check_is_um
from atlalign.atlas.section_lists import LIST_ENDINGS, ListedSection, find_list, read_list
from atlalign.errors import InputError
from atlalign.io.images import IMAGE_ENDINGS
from atlalign.io.intensity import Background
from atlalign.io.tables import number, shown, whole_number
from atlalign.registration.placement import Placing


class Job(NamedTuple):
    """One image to register.

    Attributes:
        path: The file.
        position_um: Where the section lies in the atlas; None where that does not matter.
        number: The section's number.
        anchoring: Of the image, if it has one.
        problem: Why it cannot be registered, if that is known from the list.
        options: What of `Options` is different for this image, by name.
        label: The name of the folder of results; that of the file without its ending if empty.
    """

    path: Path
    position_um: float | None = None
    number: int = 1
    anchoring: Anchoring | None = None
    problem: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    label: str = ""

    @property
    def name(self) -> str:
        """The name of the folder of results."""
        return self.label or self.path.name.removesuffix(self.path.suffix).removesuffix(".ome")


def find_jobs(
    inputs: Sequence[str | Path], *, position_um: float | None = None, listed: bool = True
) -> list[Job]:
    """Return the images that files, folders and lists of sections name.

    Args:
        inputs: Images; lists of sections (.json of QuickNII or DeepSlice, or a table); folders with one such list.
        position_um: Where all of the images without a list lie.
        listed: Whether folders need a list; otherwise all of their images are taken, and positions do not matter.

    Raises:
        InputError: If nothing is found, a position is missing or can only be meant in mm, or two images would have the
            same folder of results even with the names of their folders before.
    """
    if position_um is not None:
        check_is_um(position_um, "--position")
    jobs: list[Job] = []
    for path in map(Path, inputs):
        if path.suffix.lower() in IMAGE_ENDINGS:
            jobs.append(Job(path, position_um, len(jobs) + 1))
        elif path.is_dir() and (not listed or position_um is not None):
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
            jobs += [Job(file, position_um, number) for number, file in enumerate(found, len(jobs) + 1)]
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif path.is_file() and path.suffix.lower() not in LIST_ENDINGS:
            raise InputError(
                f"{path}: expected an image ({', '.join(IMAGE_ENDINGS)}), a list of sections "
                f"({', '.join(LIST_ENDINGS)}) or a folder"
            )
        elif position_um is not None:
            raise InputError(f"{path}: expected no --position beside a list of sections, which has its own")
        else:
            jobs += [_listed_job(section, listed=listed) for section in read_list(find_list(path))]
    jobs = _told_apart(jobs)
    if not jobs:
        raise InputError(
            f"expected images ({', '.join(IMAGE_ENDINGS)}), found none in {', '.join(map(str, inputs))}"
        )
    if listed and any(job.position_um is None and not job.problem for job in jobs):
        raise InputError(
            "expected the position of the section in the atlas (--position), a list of sections with positions, or a "
            "reference image (--reference)"
        )
    return jobs


def _told_apart(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs, those whose images have one name with the name of the image's folder before it."""
    names = Counter(job.name for job in jobs)
    told = [
        job._replace(label=f"{job.path.absolute().parent.name}_{job.name}") if names[job.name] > 1 else job
        for job in jobs
    ]
    repeated = sorted(name for name, count in Counter(job.name for job in told).items() if count > 1)
    if repeated:
        raise InputError(f"expected images of different names, found several of {', '.join(repeated)}")
    return told


def _listed_job(section: ListedSection, *, listed: bool) -> Job:
    job = Job(section.path, number=section.identity.image_id)
    try:
        job = job._replace(options=_own_options(section.cells, section.where))
    except InputError as error:
        return job._replace(problem=str(error))
    if not listed:  # the reference is no plane of an atlas
        return job
    if section.problem:
        return job._replace(problem=section.problem)
    return job._replace(position_um=section.position_um, anchoring=section.anchoring)


def _own_options(cells: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return what a table's row says of how its image is to be read and placed, as `Options` has it."""
    return {
        option: parse(cells[column], f"{where}, {column}")
        for column, (option, parse) in _COLUMNS.items()
        if cells.get(column)
    }


def _one_of(choices: Mapping[str, Any]) -> Callable[[str, str], Any]:
    def choose(cell: str, where: str) -> Any:
        if cell.lower() not in choices:
            raise InputError(f"{where}: expected one of {', '.join(choices)}, found {shown(cell)}")
        return choices[cell.lower()]

    return choose


def _float(cell: str, where: str) -> float:
    return float(number(cell, where))


def _renamed(cell: str, where: str) -> NoReturn:
    raise InputError(
        f"{where}: expected a column turn in degrees, 90 for each quarter turn, found {shown(cell)}"
    )


_YES_OR_NO = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
_COLUMNS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "channel": ("channel", whole_number),
    "mirrored": ("mirrored", _one_of(_YES_OR_NO)),
    "turn": ("turn", _float),
    "quarter_turns": ("turn", _renamed),
    "pixel_size_um": ("pixel_um", _float),
    "place": ("by", _one_of({name: name for name in get_args(Placing)})),
    "background": ("background", _one_of({name: name for name in get_args(Background)})),
}
"""What a list may say of each image, called as the options of `atlalign register`; an empty cell leaves it to these."""
