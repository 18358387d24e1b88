"""Bad inputs: good files, damaged, and what the command line makes of them."""

import contextlib
import csv
import io
import json
import shutil
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import imagecodecs
import numpy as np

from tests.campaign import damage

RIGHT, FLAGGED, SENTENCE = "right", "flagged", "one sentence"
IN_LOG, TRACEBACK, HANG, CRASH, WRONG = "exception in a row", "traceback", "hang", "crash", "wrong, with pass"
OTHERWISE = "accepted, other result"
VERDICTS = (RIGHT, FLAGGED, OTHERWISE, SENTENCE, IN_LOG, TRACEBACK, HANG, CRASH, WRONG)
BAD = (TRACEBACK, HANG, CRASH, WRONG)

_SECONDS = 300  # on a machine with much other work, locating alone takes minutes
_MEMORY = 12 * 2**30
_CLOSE_UM = 50.0  # of a result that a flipped bit of the image may change
_OPTIONS = ("--atlas", "phantom", "--device", "cpu")
_ODD_NAMES = (
    "a b",
    "ä",
    "a" * 250,
    "-x",
    "%s{}",
    "..",
    ".hidden",
    "\n",
    "\t",
    "'\"",
    "m\udcfc",
    "~",
    "$HOME",
    "*",
)


class Case(NamedTuple):
    """A damaged input.

    Attributes:
        kind: The kind of file.
        how: The damage.
        number: Decides all that is random.
    """

    kind: str
    how: str
    number: int


class Answer(NamedTuple):
    """The verdict on what the command did, and what it said."""

    verdict: str
    said: str


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        file: The good one's name in the folder of good files.
        command: The command, without the name of the damaged file, which takes the place of FILE.
        damages: What may happen to it.
        result: What is compared with the good file's result, below the folder OUT.
    """

    file: str
    command: tuple[str, ...]
    damages: tuple[damage.Damage, ...] = damage.OF_ANY_FILE
    result: str = ""


def _register(*more: str) -> tuple[str, ...]:
    return ("register", *more, *_OPTIONS, "--workers", "1", "--out", "OUT")


_ONE = ("--position", "6600")
_TRANSFORM = ("transform", "FILE", "--with", "GOOD/result/section", "--to", "reference", "--out")
_VOLUME = ("register", "GOOD/section.png", *_ONE, "--atlas", "FILE", "--spacing-um", "1200", "--out", "OUT")

KINDS: dict[str, Kind] = {
    "image .png": Kind("section.png", _register("FILE", *_ONE), result="section"),
    "image .tif": Kind("section.tif", _register("FILE", *_ONE), result="section"),
    "image .tif, tiled and compressed": Kind("tiled.tif", _register("FILE", *_ONE), result="tiled"),
    "image .jpg": Kind("section.jpg", _register("FILE", *_ONE), result="section"),
    "list .csv": Kind("list.csv", _register("FILE"), damage.OF_TEXTS, "section"),
    "list .json": Kind("list.json", _register("FILE"), damage.OF_TEXTS, "section"),
    "points .csv": Kind("points.csv", (*_TRANSFORM, "OUT.csv"), damage.OF_TEXTS),
    "shapes .geojson": Kind("shapes.geojson", (*_TRANSFORM, "OUT.geojson"), damage.OF_TEXTS),
    "data set .h5": Kind("data.h5", ("validate", "FILE")),
    "model .safetensors": Kind(
        "model.safetensors", _register("GOOD/section.png", *_ONE, "--model", "FILE"), result="section"
    ),
    "model .pt": Kind("model.pt", _register("GOOD/section.png", *_ONE, "--model", "FILE"), result="section"),
    "atlas .npy": Kind("atlas.npy", _VOLUME, result="section"),
    "atlas .nrrd": Kind("atlas.nrrd", _VOLUME, result="section"),
    "result, run again": Kind("result/section", _register("GOOD/section.png", *_ONE), result="section"),
    "result, used": Kind(
        "result/section",
        ("transform", "GOOD/points.csv", "--with", "FILE", "--to", "reference", "--out", "OUT.csv"),
    ),
    "name of an image": Kind("section.png", _register("FILE", *_ONE), (damage.nothing,)),
}


def cases(number: int, seed: int = 0) -> Iterator[Case]:
    """Yield so many cases of each kind, each damage in turn; one of each kind comes before the second of any."""
    for i in range(number):
        for kind, entry in KINDS.items():
            how = entry.damages[i % len(entry.damages)].__name__
            yield Case(kind, how, zlib.crc32(f"{seed} {kind} {i}".encode()))


def run(cases: list[Case], report: Callable[[Case, Answer], None]) -> None:
    """Try cases one after the other in a process of its own, and report the answer to each."""
    with TemporaryDirectory() as folder:
        good = make_good_files(Path(folder))
        while cases:
            with ProcessPoolExecutor(1, initializer=_limit_memory) as pool:
                while cases:
                    future = pool.submit(answer, cases[0], good)
                    try:
                        given = future.result(timeout=_SECONDS)
                    except TimeoutError:
                        given = Answer(HANG, f"no end after {_SECONDS} s")
                    except BrokenProcessPool:
                        given = Answer(CRASH, "the process died")
                    report(cases.pop(0), given)
                    if given.verdict in (HANG, CRASH):
                        for process in (pool._processes or {}).values():
                            process.kill()
                        break


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


# --- one case ---------------------------------------------------------------------------------------------------------


def answer(case: Case, good: Path) -> Answer:
    """Damage a copy of a good file, give it to its command, and judge what that does."""
    with TemporaryDirectory(dir=good.parent) as folder:
        place = Path(folder)
        out = place / "out"
        file = _damaged(case, good, place)
        entry = KINDS[case.kind]
        status, printed = _run_command(entry, file, good, out)
        return Answer(_verdict(case, entry, status, printed, good, out), printed[-2000:])


def _damaged(case: Case, good: Path, place: Path) -> Path:
    random = np.random.default_rng(case.number)
    entry = KINDS[case.kind]
    source = good / entry.file
    if case.kind == "name of an image":
        name = _ODD_NAMES[random.integers(len(_ODD_NAMES))]
        target = place / f"{name}{source.suffix}"
        with contextlib.suppress(OSError):  # such a file does not exist, then
            shutil.copy(source, target)
        return target
    target = place / ("out" if case.kind == "result, run again" else "") / source.name
    if source.is_dir():
        shutil.copytree(source, target)
        files = sorted(target.iterdir())
        changed = files[random.integers(len(files))]
    else:
        changed = Path(shutil.copy(source, target))
    how = getattr(damage, case.how)
    changed.write_bytes(how(changed.read_bytes(), random))
    return target


def _run_command(entry: Kind, file: Path, good: Path, out: Path) -> tuple[int | None, str]:
    """Return the command's exit status, None after an exception, and what it printed."""
    from atlalign.cli import main

    names = {"FILE": str(file), "OUT": str(out), "OUT.csv": f"{out}.csv", "OUT.geojson": f"{out}.geojson"}
    command = [names.get(part, part.replace("GOOD", str(good))) for part in entry.command]
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    status: int | None = None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = main(command)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc(file=printed)
    printed.seek(0)
    return status, printed.read()


def _verdict(case: Case, entry: Kind, status: int | None, printed: str, good: Path, out: Path) -> str:
    if status is None or "Traceback" in printed:
        return TRACEBACK
    if (out / "errors.log").exists():
        return IN_LOG
    if status:
        return SENTENCE if "error: " in printed else TRACEBACK
    if not entry.result:
        return RIGHT if _same_outputs(case, good, out, printed) else OTHERWISE
    if is_close(good / "result" / "section", out / entry.result):
        return RIGHT
    return WRONG if _passes(out) else FLAGGED


def _passes(out: Path) -> bool:
    with (out / "registrations.csv").open(encoding="utf-8") as table:
        return any(row["flag"] == "pass" for row in csv.DictReader(table))


def _same_outputs(case: Case, good: Path, out: Path, printed: str) -> bool:
    if case.kind == "name of an image":
        rows = list(csv.DictReader((out / "registrations.csv").open(encoding="utf-8")))
        sections = [
            row["section"].removeprefix("'") for row in rows
        ]  # which keeps spreadsheets from running it
        return len(sections) == 1 and is_close(good / "result" / "section", out / sections[0])
    for ending in ("csv", "geojson"):
        made = out.with_name(f"out.{ending}")
        if made.exists():
            return made.read_bytes() == (good / f"transformed.{ending}").read_bytes()
    return "valid" in printed or not printed


def is_close(one: Path, other: Path) -> bool:
    """Return whether two results map the section to about the same places."""
    from atlalign.errors import InputError
    from atlalign.registration import SectionTransform

    try:
        fields = [SectionTransform.load(folder).forward for folder in (one, other)]
    except InputError:
        return False
    if fields[0].grid.shape != fields[1].grid.shape:
        return False
    return float((fields[0].mm - fields[1].mm).norm(dim=0).mean()) * 1000 < _CLOSE_UM


# --- good files -------------------------------------------------------------------------------------------------------


def make_good_files(folder: Path) -> Path:
    """Write a good file of each kind, and the results of the good commands."""
    import SimpleITK
    import tifffile

    from atlalign.atlas.atlas import phantom_atlas
    from atlalign.cli import main
    from atlalign.models import load_model, save_model
    from atlalign.models.model_file import SHIPPED_MODEL
    from tests.conftest import write_h5

    good = folder / "good"
    good.mkdir()
    atlas = phantom_atlas(image_shape=(96, 144), spacing_um=1200)
    image = (atlas.section(6600)[0] * 255).byte().numpy()
    (good / "section.png").write_bytes(imagecodecs.png_encode(image))
    (good / "section.jpg").write_bytes(imagecodecs.jpeg_encode(image, level=95))
    tifffile.imwrite(good / "section.tif", image)
    tifffile.imwrite(good / "tiled.tif", image, tile=(32, 32), compression="zlib")
    (good / "list.csv").write_text(f"filename,p,channel\n{good}/section.png,6600,\n")
    anchored = {"filename": f"{good}/section.png", "nr": 1, "width": 144, "height": 96}
    anchored["anchoring"] = [0, 264, 320, 456, 0, 0, 0, 0, -320]
    (good / "list.json").write_text(json.dumps({"slices": [anchored]}))
    (good / "points.csv").write_text("x,y,name\n" + "".join(f"{i},{i / 2},cell {i}\n" for i in range(10, 80)))
    (good / "shapes.geojson").write_text(json.dumps(_shapes()))
    write_h5(good / "data.h5")
    shutil.copy(SHIPPED_MODEL, good / "model.safetensors")
    save_model(load_model(), good / "model.pt")
    np.save(good / "atlas.npy", atlas.template.numpy())
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(atlas.template.numpy()), str(good / "atlas.nrrd"), True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments = ["register", good / "section.png", *_ONE, *_OPTIONS, "--out", good / "result"]
        assert main([str(argument) for argument in arguments]) == 0
        for ending, name in (("csv", "points.csv"), ("geojson", "shapes.geojson")):
            arguments = ["transform", good / name, "--with", good / "result" / "section", "--to", "reference"]
            arguments += ["--out", good / f"transformed.{ending}"]
            assert main([str(argument) for argument in arguments]) == 0
    return good


def _shapes() -> dict[str, object]:
    ring = [[20, 20], [60, 20], [60, 50], [20, 50], [20, 20]]
    shape = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"name": "a"},
    }
    return {"type": "FeatureCollection", "features": [shape]}
