"""Separates the sections of slides: finds them, or applies the user's changes to their list."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atlalign.errors import InputError
from atlalign.io.files import file_name, fingerprint, lock, written_whole
from atlalign.io.scenes import Scene
from atlalign.io.slides import open_slide
from atlalign.plots import Outlined, save_figure, sections_figure
from atlalign.sections.cutting import write_section
from atlalign.sections.edits import edited
from atlalign.sections.finding import Turning, View, find_on_view, named, nothing_found, with_turns
from atlalign.sections.listing import LIST, read_rows, write_list
from atlalign.sections.memory import MEMORY, Memory, read_memory, write_memory
from atlalign.sections.options import SectionsOptions
from atlalign.sections.section import ENDING, Frame, Section, frame_of
from atlalign.sections.small_copy import SmallCopy, ground_color, small_copy
from atlalign.sections.upright import Judge

SHEET_ENDING = "_sections.png"
"""The ending of the names of contact sheets."""

_MARGIN_UM = 300.0
_DEFAULTS = SectionsOptions()


class Separated(NamedTuple):
    """The result of separating slides.

    Attributes:
        sections: All sections of the folder that have an image, in the order of its list.
        written: The number of written images.
        errors: Why slides could not be separated.
    """

    sections: list[Section]
    written: int
    errors: list[str]


class _Scan(NamedTuple):
    """A scene of a slide with its small copy."""

    scene: Scene
    copy: SmallCopy
    pixel_um: tuple[float, float]

    @property
    def mean_um(self) -> float:
        return float(np.mean(self.pixel_um))


def separate(
    slides: Sequence[Path],
    out: Path,
    options: SectionsOptions = _DEFAULTS,
    *,
    judge: Judge | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Separated:
    """Write the sections of slides as single images, with their list and a contact sheet for each slide.

    If the folder already has a list, its requested changes are made, and only changed sections are written.

    Args:
        slides: The files.
        out: The folder.
        options: How sections are found and written.
        judge: Finds the upright direction, and the pieces that form one section; None uses shapes alone.
        progress: Called with the name of each image before it is written.

    Raises:
        InputError: If the list requests an impossible change, or the folder cannot be written.

    Example:
        >>> from PIL import Image
        >>> y, x = np.mgrid[:150, :300]
        >>> two_discs = np.where(np.hypot(y - 75, x % 150 - 75) < 45, 90, 240)
        >>> Image.fromarray(two_discs.astype(np.uint8)).save("slide.png")
        >>> found = separate([Path("slide.png")], Path("sections"), SectionsOptions(pixel_size_um=80))
        >>> [section.filename for section in found.sections]
        ['slide_s001.ome.tif', 'slide_s002.ome.tif']
    """
    with lock(out):
        memory, applied = _known(out, options)
        turning = Turning(options.upright != "no", judge if options.upright == "brain" else None)
        return _Folder(out, options, turning, memory, applied, progress).separate(slides)


def count_sections(slide: Path, options: SectionsOptions = _DEFAULTS) -> int:
    """Return the number of sections on a slide; 0 if it is unknown, because the pixel size is unknown.

    Raises:
        InputError: If the file cannot be read.
    """
    count = 0
    for scene in open_slide(slide).scenes:
        pixel_um = options.pixel_size_um or (scene.pixel_um and float(np.mean(scene.pixel_um)))
        if pixel_um is None:
            return 0
        copy = small_copy(scene.in_focus(options.z or 0), pixel_um)
        count += View(copy, pixel_um, options.background).pieces().number
    return count


def _known(out: Path, options: SectionsOptions) -> tuple[Memory, str]:
    """Return the state of a folder after the changes that its list requests, and the list's SHA-256."""
    listing = out / LIST
    memory = None if options.overwrite else read_memory(out)
    if not listing.is_file():
        return Memory([], {}), ""
    if memory is None:
        if options.overwrite:
            return Memory([], {}), ""
        raise InputError(
            f"{listing} exists, but {MEMORY} beside it is missing: choose another --out, or add --overwrite"
        )
    applied = fingerprint(listing)
    if memory.applied == applied:  # a run was interrupted after reading this list
        return memory, applied
    return memory._replace(sections=edited(read_rows(out, memory.sections))), applied


class _Folder:
    """A folder of sections that is being updated."""

    def __init__(
        self,
        out: Path,
        options: SectionsOptions,
        turning: Turning,
        memory: Memory,
        applied: str,
        progress: Callable[[str], None],
    ) -> None:
        self.out, self.options, self.turning, self.progress = out, options, turning, progress
        self.sections, self.slides, self.applied = list(memory.sections), dict(memory.slides), applied
        self.errors: list[str] = []
        self.written = 0

    def separate(self, slides: Sequence[Path]) -> Separated:
        self._check_given(slides)
        for path in slides:
            try:
                self._separate_one(path)
            except InputError as error:
                self.errors.append(str(error))
        if self.slides:
            self._remove_others()
            write_list(self.out, self.sections)
            self._remember(applied="")
        return Separated([section for section in self.sections if section.kept], self.written, self.errors)

    def _check_given(self, slides: Sequence[Path]) -> None:
        """Check that slides differ in name, and that every slide with changed sections is given."""
        names = [path.name for path in slides]
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise InputError(f"{twice}: expected slides with different names, found this one twice")
        changed = {section.slide for section in self.sections if not self._is_up_to_date(section)}
        if changed - set(names):
            raise InputError(
                f"{self.out / LIST}: expected {min(changed - set(names))} among the slides, because the list changes "
                "its sections: add this slide to the command"
            )

    def _is_up_to_date(self, section: Section) -> bool:
        return not section.kept or (section.is_written and (self.out / section.filename).is_file())

    def _separate_one(self, path: Path) -> None:
        scans = self._open(path)
        mark = _mark(path, scans)
        if path.name not in self.slides:
            self._add(path, scans)
            self.slides[path.name] = mark
        elif self.slides[path.name] != mark:
            raise InputError(
                f"{path.name}: expected the slide whose sections are in {self.out}, found another slide of this name: "
                "choose another --out, or add --overwrite"
            )
        self._turn(path, scans)
        self._remember(applied=self.applied)
        self._write_images(path, scans)
        self._write_sheets(path, scans)

    def _open(self, path: Path) -> list[_Scan]:
        scans = []
        for scene in open_slide(path).scenes:
            scene.check()
            scans.append(self._scan(path, scene))
        return scans

    def _scan(self, path: Path, scene: Scene) -> _Scan:
        given = self.options.pixel_size_um
        pixel_um = scene.pixel_um if given is None else (given, given)
        if pixel_um is None:
            raise InputError(
                f"{path.name}: expected a pixel size, found none in the file: set --pixel-size-um"
            )
        if scene.z_count > 1 and self.options.z is None:
            raise InputError(
                f"{path.name}: expected one plane, found a z-stack of {scene.z_count} planes: choose one (--z INDEX), "
                "the sharpest (--z best) or the brightest values (--z max)"
            )
        scene = scene.in_focus(0 if self.options.z is None else self.options.z)
        return _Scan(scene, small_copy(scene, float(np.mean(pixel_um))), pixel_um)

    def _add(self, path: Path, scans: Sequence[_Scan]) -> None:
        found: list[Section] = []
        for number, scan in enumerate(scans):
            found += find_on_view(
                self._view(scan),
                slide=path.name,
                scene=number,
                order=self.options.order,
                turning=self.turning,
            )
        if all(section.left_out for section in found):
            raise nothing_found(path.name, found)
        x, y = scans[0].pixel_um
        cells = {"pixel_size_um": f"{x:g}" if x == y else ""}
        self.sections += [section._replace(cells=cells) for section in named(found, self._stem(path))]

    def _turn(self, path: Path, scans: Sequence[_Scan]) -> None:
        """Turn merged and split sections upright."""
        for number, scan in enumerate(scans):
            places = [
                place
                for place, section in enumerate(self.sections)
                if section.slide == path.name and section.scene == number
            ]
            turned = with_turns(self._view(scan), [self.sections[place] for place in places], self.turning)
            for place, section in zip(places, turned, strict=True):
                self.sections[place] = section

    def _view(self, scan: _Scan) -> View:
        return View(scan.copy, scan.mean_um, self.options.background)

    def _stem(self, path: Path) -> str:
        """Return the beginning of the names of a slide's images, which is unique to the slide."""
        stem = file_name(path.name.removesuffix(path.suffix).removesuffix(".ome"))
        taken = {section.filename.rpartition("_s")[0] for section in self.sections}
        return stem if stem not in taken else file_name(path.name.replace(".", "_"))

    def _write_images(self, path: Path, scans: Sequence[_Scan]) -> None:
        for place, section in enumerate(self.sections):
            if section.slide == path.name and not self._is_up_to_date(section):
                self.progress(section.filename)
                self._write_image(section, scans[section.scene])
                self.sections[place] = section._replace(is_written=True)
                self.written += 1
                self._remember(applied=self.applied)

    def _write_image(self, section: Section, scan: _Scan) -> None:
        of_scene = [s for s in self.sections if s.slide == section.slide and s.scene == section.scene]
        # A rejected piece may be a part of the section.
        others = [
            other.outline for other in of_scene if other.filename != section.filename and not other.left_out
        ]
        ground = ground_color(scan.copy, [s.outline for s in of_scene], section.outline)
        if scan.scene.dtype.kind in "ui":
            ground = np.round(ground)
        frame = _frame(section, scan)
        write_section(
            self.out / section.filename,
            scan.scene,
            frame,
            others,
            ground.astype(scan.scene.dtype),
            scan.pixel_um,
        )

    def _write_sheets(self, path: Path, scans: Sequence[_Scan]) -> None:
        for number, scan in enumerate(scans):
            own = [s for s in self.sections if s.slide == path.name and s.scene == number]
            scene = f", scene {number}" if len(scans) > 1 else ""
            figure = sections_figure(
                scan.copy.pixels,
                scan.copy.scale,
                [_outlined(section, scan) for section in own],
                title=f"{path.name}{scene}",
                is_color=scan.copy.is_color,
            )
            ending = f"_scene{number}{SHEET_ENDING}" if scene else SHEET_ENDING
            with written_whole(self.out / f"{self._own_stem(path)}{ending}") as unfinished:
                save_figure(figure, unfinished)

    def _own_stem(self, path: Path) -> str:
        own = next((s.filename for s in self.sections if s.slide == path.name), None)
        return self._stem(path) if own is None else own.rpartition("_s")[0]

    def _remember(self, *, applied: str) -> None:
        write_memory(self.out, Memory(self.sections, self.slides, applied))

    def _remove_others(self) -> None:
        """Delete images of sections that are no longer in the list, for the slides of this folder."""
        kept = {section.filename for section in self.sections if section.kept}
        stems = {section.filename.rpartition("_s")[0] for section in self.sections}
        for path in self.out.glob(f"*{ENDING}"):
            if path.name not in kept and path.name.rpartition("_s")[0] in stems:
                path.unlink()


def _frame(section: Section, scan: _Scan) -> Frame:
    return frame_of(section, _MARGIN_UM / scan.mean_um)


def _outlined(section: Section, scan: _Scan) -> Outlined:
    frame = _frame(section, scan)
    reason = "" if section.kept else section.left_out or "dropped"
    return Outlined(section.label, section.outline, frame.matrix, frame.shape, section.note, reason)


def _mark(path: Path, scans: Sequence[_Scan]) -> str:
    """Return a key that distinguishes a slide's file from other files with the same name."""
    sizes = "+".join("×".join(map(str, scan.scene.shape)) for scan in scans)
    return f"{path.stat().st_size} bytes, {sizes}"
