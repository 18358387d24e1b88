"""Every command and every Python example of README and docs/ does what a reader types it for, at tiny sizes."""

import itertools
import json
import re
import shlex
import shutil
import urllib.request
import webbrowser
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import h5py
import numpy as np
import pytest
import SimpleITK
import tifffile
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.phantom import phantom_volume
from atlalign.atlas.phantom_anatomy import phantom_ontology
from atlalign.cli import main as atlalign
from atlalign.cli.programs import PROGRAMS
from atlalign.data import schema
from atlalign.evaluation.evaluate import evaluate
from atlalign.models import ModelOrigin, merge_global_local, save_model
from atlalign.networks import GlobalAffineNet, LocalUNet
from atlalign.synthesis.generate import generate
from atlalign.training.run import train
from tests.conftest import write_h5
from tests.models.keras_writer import KerasWriter

ROOT = Path(__file__).parents[1]
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
BLOCKS = [
    block
    for path, text in PAGES.items()
    if path.parent.name != "tutorials"  # tests/test_tutorials.py follows them
    for block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
]
COMMANDS = [
    shlex.split(line)
    for line in dict.fromkeys(
        shlex.join(shlex.split(line, comments=True))
        for language, block in BLOCKS
        if language == "sh"
        for line in block.splitlines()
        if line.strip() and not line.startswith("#")
    )
]


def arguments_of(program: str, command: list[str]) -> list[str] | None:
    """Return the arguments if the command is `atlalign PROGRAM …` or its script's; None for other commands."""
    for number, word in enumerate(command):
        if word == f"{program}.py" or command[max(number - 1, 0) : number + 1] == ["atlalign", program]:
            return command[number + 1 :]
    return None


TRAININGS = [command for command in COMMANDS if arguments_of("train", command) is not None]
ON_SEVERAL = ("trainer=ddp", "trainer=cluster")  # run by tests/training/test_processes.py
EVALUATIONS = [command for command in COMMANDS if arguments_of("evaluate", command) is not None]
GENERATIONS = [command for command in COMMANDS if arguments_of("generate", command) is not None]
PROSE = "\n".join(PAGES.values())
REGION_COLUMNS = "id,acronym,name,structure_id_path,color_hex_triplet"
SHAPE = (64, 96)  # the smallest that the perceptual losses' networks take
TINY = [
    "data.image_shape=[64,96]", "data.batch_size=2", "trainer.max_epochs=1", "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    "callbacks.progress=null", "callbacks.summary=null", "callbacks.figure=null", "hydra.run.dir=unused",
]  # fmt: skip


def single_runs(arguments: list[str]) -> list[list[str]]:
    """Return what multirun would run: the product of every sweep over its values."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    choices = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [None] for o in overrides]
    return [
        [
            a if value is None else f"{o.get_key_element()}={value}"
            for a, o, value in zip(arguments, overrides, values, strict=True)
        ]
        for values in itertools.product(*choices)
    ]


@pytest.fixture(scope="module")
def example_files(tmp_path_factory) -> Path:
    """The files that README's commands start from, and a section that its own command has registered."""
    folder = tmp_path_factory.mktemp("readme")
    write_my_sections(folder)
    origin = ModelOrigin(image_shape=SHAPE)
    network = GlobalAffineNet((2,), (), SHAPE)
    save_model(network, folder / "global.pt", origin=origin)
    save_model(LocalUNet((), (), (), (), ()), folder / "local.pt", origin=origin)
    pair = merge_global_local(folder / "global.pt", folder / "local.pt")
    save_model(pair, folder / "merged.pt", origin=origin)
    writer = KerasWriter()
    writer.add_global(network)
    writer.file(folder / "old_model.h5")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        registers = next(c for c in COMMANDS if c[1:3] == ["register", "sections.json"] and "--ontology" in c)
        assert atlalign(offline(registers[1:])) == 0
        assert atlalign(["count", "all_in_atlas.csv", "--with", "registered", "--out", "counts.csv"]) == 0
    return folder


def offline(arguments: list[str]) -> list[str]:
    """Return the arguments with an atlas file in place of the atlas that would be downloaded."""
    needs_atlas = arguments[0] == "register" and not {"--atlas", "--reference"} & set(arguments)
    return [*arguments, "--atlas", "atlas_25um.h5"] if needs_atlas else arguments


@pytest.fixture
def in_example_files(example_files, tmp_path, monkeypatch) -> Path:
    """A copy of them, to work in."""
    shutil.copytree(example_files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runnable(in_example_files, tmp_path, monkeypatch):
    """Return a function that turns README's arguments into those of a tiny run on files that exist here."""
    write_my_sections(tmp_path)
    for name in ("my.h5", "made.h5"):
        write_h5(tmp_path / name, shape=SHAPE)
    write_atlas(tmp_path / "template_25um.nrrd")

    def runnable(arguments: list[str]) -> list[str]:
        extra = list(TINY)
        if {"data=online", "experiment=atlas_alone"} & set(arguments):
            extra += ["data.samples_per_epoch=2", "data.n_val=1"]
        elif not {"data=h5", "experiment=fine_tuning"} & set(arguments):
            extra += ["data.n_sections=4", "data.fields_per_section=1"]
        if not any(a.startswith(("atlas=", "atlas.path")) for a in arguments):
            extra += ["atlas.spacing_um=1100"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            extra += ["require_ratio=null"]
            if "perceptual" in str(compose("train", [*arguments, *extra]).loss):
                extra += ["loss.backbone_weights=random"]
        return [a for a in arguments if not a.startswith(("loss.backbone_weights", "ckpt_path"))] + extra

    return runnable


def write_atlas(path: Path) -> None:
    template, _ = phantom_volume(shape=(528, 8, 12), seed=0)
    write_image(path, template.transpose(2, 1, 0))


def kind(command: list[str]) -> tuple[str, ...]:
    """Return what makes a training another kind: its network, data and experiment."""
    return tuple(sorted(a for a in command if re.match(r"(model|data|experiment|sweep)(=|$)", a)))


RUNNABLE = [c for c in TRAININGS if not {"…", "atlas=allen", *ON_SEVERAL} & set(c)]
ONE_OF_A_KIND = list({kind(command): command for command in reversed(RUNNABLE)}.values())


@pytest.mark.parametrize("command", [c for c in RUNNABLE if c not in ONE_OF_A_KIND], ids=" ".join)
def test_other_training_commands_compose(command, runnable, tmp_path):
    arguments = [a for a in arguments_of("train", command) if a != "-m"]
    for run in map(runnable, single_runs(arguments)):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            assert compose("train", run).loss._target_


@pytest.mark.parametrize("command", ONE_OF_A_KIND, ids=" ".join)
def test_training_commands(command, runnable, tmp_path):
    arguments = [a for a in arguments_of("train", command) if a != "-m"]
    run = runnable(single_runs(arguments)[0])
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for others in single_runs(arguments)[1:]:
            compose("train", others)
        train(compose("train", [*run, f"run_dir={tmp_path / 'run'}"]))
    assert (tmp_path / "run" / "registered.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", GENERATIONS, ids=" ".join)
def test_generate_commands(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_my_sections(tmp_path)
    arguments = arguments_of("generate", command)
    tiny = ["data.image_shape=[64,96]", "per_original=1", "max_difference=0.1", "workers=0"]
    if not any(a.startswith("source=") for a in arguments):
        tiny.append("source.n_sections=2")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        path = generate(compose("generate", [*arguments, *tiny]))
    assert schema.validate(path).n_samples > 0


@pytest.mark.parametrize("command", EVALUATIONS, ids=" ".join)
def test_evaluate_commands(command, in_example_files):
    if "ants" in " ".join(command):
        pytest.importorskip("ants", exc_type=ImportError)
    arguments = [*arguments_of("evaluate", command), "data.image_shape=[64,96]", "split=all"]
    if "data=demo" in arguments:
        arguments += ["data.n_sections=2", "data.fields_per_section=1"]
    if not any(a.startswith("atlas=") for a in arguments):
        arguments += ["atlas=phantom", "atlas.spacing_um=1100"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        evaluate(compose("evaluate", arguments))
    out = next(a.removeprefix("out=") for a in arguments if a.startswith("out="))
    assert (Path(out) / "report.html").stat().st_size > 30_000


def write_my_sections(folder: Path) -> None:
    """Write a data set, an atlas, anchored sections, and what belongs to them."""
    template, labels = phantom_volume(shape=(264, *SHAPE), seed=0)
    with h5py.File(folder / "atlas_25um.h5", "w") as file:
        file["template"], file["annotation"] = template, labels
        file.attrs["spacing_um"] = 25.0  # of a brain half as long as a mouse's
    zeros = np.zeros((2, *SHAPE, 2), np.float16)
    planes = template[[100, 140]]
    write_h5(folder / "my.h5", n=2, shape=SHAPE, img=planes, deltas_xy=zeros, inv_deltas_xy=zeros)
    for name, image in (("section.tif", 255 - planes[0]), ("gfp.tif", planes[0]), ("plane.png", planes[0])):
        write_image(folder / name, image)
    write_image(folder / "plane_labels.tif", labels[100])
    anchoring = [456, 396, 320, -456, 0, 0, 0, 0, -320]
    entry = {"filename": "section.tif", "nr": 1, "width": 96, "height": 64, "anchoring": anchoring}
    (folder / "sections.json").write_text(json.dumps({"slices": [entry]}))
    rows = [
        f'{region.id},{region.acronym},"{region.name}",/{"/".join(map(str, region.path))}/,'
        f"{bytes(region.color).hex()}"
        for region in phantom_ontology()
    ]
    (folder / "structure_tree.csv").write_text("\n".join([REGION_COLUMNS, *rows]))
    (folder / "cells.csv").write_text("x,y,kind\n40,30,neuron\n50.5,20,glia\n")
    (folder / "all_cells.csv").write_text("section,x,y\nsection,40,30\n")
    (folder / "all_in_atlas.csv").write_text("section,region_id\nsection,0\n")
    measured = "Image,Class,Centroid X px,Centroid Y px\nsection.tif,Neuron,40.5,30.5\n"
    (folder / "measurements.csv").write_text(measured, encoding="utf-8")
    (folder / "qupath_in_atlas.csv").write_text("section,region_id\nsection,0\n")
    write_image(folder / "my_section.png", planes[1])
    (folder / "landmarks.csv").write_text(
        "sample,reference_x,reference_y,moving_x,moving_y\n0,40,30,41,30\n1,50,20,50,21\n"
    )
    write_slide(folder)
    (folder / "targets.csv").write_text("ap_um,dv_um,ml_um\n3300,4000,6000\n")
    cell = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [40.5, 30.5]}}
    (folder / "cells.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [cell]}))


def write_slide(folder: Path) -> None:
    """Write a slide of three sections, and the sections in a folder."""
    section = (phantom_atlas(image_shape=(160, 228), spacing_um=50).section(6000)[0] * 200).byte().numpy()
    (folder / "my_sections").mkdir(exist_ok=True)
    tifffile.imwrite(folder / "my_sections" / "brain_s120.tif", np.pad(section, 20))
    tifffile.imwrite(
        folder / "slide.qptiff",
        np.tile(np.pad(section + 10, 20, constant_values=10), 3),
        resolution=(1e4 / 50,) * 2,
        resolutionunit="CENTIMETER",
        software="atlalign",
    )


def write_image(path: Path, pixels: np.ndarray) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels), path)


def test_the_atlas_that_is_downloaded_composes():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["data=h5", "data.path=my.h5", "atlas=allen"])
    assert config.atlas._target_ == "atlalign.atlas.atlas.allen_atlas"


@pytest.mark.parametrize("command", [c for c in TRAININGS if set(ON_SEVERAL) & set(c)], ids=" ".join)
def test_commands_for_several_processes_compose(command):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [a for a in arguments_of("train", command) if "run.dir" not in a])
    assert config.trainer.strategy == "ddp"


def test_no_command_is_left_out():
    known = ("train.py", "make", "pip", "tensorboard", "atlalign")
    assert len(TRAININGS) >= 8
    assert len(GENERATIONS) >= 3
    assert all(any(word in command for word in known) for command in COMMANDS)


def test_make_commands_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {c[1] for c in COMMANDS if c[0] == "make"} <= set(targets)


def test_validate_command(tmp_path, capsys):
    assert "`atlalign validate my.h5`" in PAGES[ROOT / "docs/guides/own-data.md"]
    assert atlalign(["validate", str(write_h5(tmp_path / "my.h5"))]) == 0


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c[0] == "atlalign" and c[1] not in (*PROGRAMS, "--version")],
    ids=" ".join,
)
def test_atlalign_commands(command, in_example_files, monkeypatch):
    if command[1] == "review":  # it would serve until Ctrl-C
        monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda self: None)
        monkeypatch.setattr(webbrowser, "open", lambda address: True)
    if "my_sections" in command:  # the locator knows an atlas of the Allen size
        command = [word for word in command if word not in ("--atlas", "atlas_25um.h5")] + [
            "--atlas",
            "phantom",
        ]
    if command[1] == "runs":
        write_run(Path(command[2]) / "0")
    out = Path(command[command.index("--out") + 1] if "--out" in command else command[2])
    if "--out" in command and out.is_file():  # a file that the next command reads
        out.unlink()
    if command[1] == "register":
        shutil.rmtree("registered")
    assert atlalign(offline(command[1:])) == 0
    assert out.exists()


def write_run(folder: Path) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data = ["data.n_sections=4", "data.fields_per_section=1", "atlas.spacing_um=1100"]
        train(compose("train", [*TINY, *data, "logger=none", f"run_dir={folder}"]))


@pytest.mark.parametrize("code", [b for language, b in BLOCKS if language == "python"])
def test_python_examples(code, in_example_files):
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})


def test_tables_name_every_option():
    for group in (
        "model",
        "loss",
        "augment",
        "data",
        "atlas",
        "trainer",
        "callbacks",
        "logger",
        "experiment",
        "sweep",
        "source",
        "deformation",
    ):
        for option in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{option.stem}`" in PROSE or option.stem.startswith("alex"), f"{group}={option.stem}"


def test_every_loss_key_is_listed():
    from atlalign.losses import ALL_DVF_LOSSES, ALL_IMAGE_LOSSES, ALL_REGULARITY_LOSSES

    for key in {*ALL_DVF_LOSSES, *ALL_IMAGE_LOSSES, *ALL_REGULARITY_LOSSES}:
        assert f"`{key}`" in PAGES[ROOT / "docs/guides/train.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page):
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose):
        assert target.startswith("http") or (page.parent / target).exists(), target


ADDRESSES = sorted(
    {
        address.rstrip(".,;")
        for text in PAGES.values()
        for address in re.findall(r"https?://[^\s)>\"'`|]+", text)
    }
)


def is_reachable(address: str) -> bool:
    """Return whether an address answers to HEAD, or to GET where HEAD is not served."""
    for method in ("HEAD", "GET"):
        request = urllib.request.Request(address, method=method, headers={"User-Agent": "Mozilla/5.0"})
        with suppress(OSError), urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status < 400
    return False


@pytest.mark.slow
@pytest.mark.network
def test_every_external_link_is_reachable():
    assert [address for address in ADDRESSES if not is_reachable(address)] == []


def test_a_page_that_answers_only_to_get_is_reachable(tmp_path):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert is_reachable(f"{base}/there")
        assert not is_reachable(f"{base}/gone")
        server.shutdown()
    assert not is_reachable(f"{base}/there")
    assert "https://pytorch.org/get-started/locally/" in ADDRESSES


def test_the_readme_stays_short():
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 130
