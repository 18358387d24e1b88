"""Evaluations at tiny sizes: results that can be computed by hand, and errors of one sentence that leave no file."""

import contextlib
import csv
import json
import math
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from atlalign import versions
from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.phantom import phantom_volume
from atlalign.data.datamodule import RegistrationDataModule
from atlalign.errors import InputError, readable_errors
from atlalign.evaluation.evaluate import evaluate
from atlalign.geometry import warp
from atlalign.models import ModelOrigin, save_model
from atlalign.networks import GlobalAffineNet, Registration
from atlalign.training.run import train
from tests.conftest import SHAPE, write_h5

ROOT = Path(__file__).parents[2]
SHIFT = (3.0, -2.0)
ALLOW = f"allow=[{__name__}.Shift]"


class Shift(torch.nn.Module):
    """Predicts one displacement everywhere, whatever it sees."""

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.hyperparameters = {"x": x, "y": y}

    def forward(self, reference, moving):
        x, y = self.hyperparameters.values()
        dvf = torch.tensor([x, y]).view(1, 2, 1, 1).expand(len(moving), 2, *moving.shape[-2:]).contiguous()
        return Registration(registered=warp(moving, dvf), dvf=dvf, inv_dvf=-dvf)


def write_inputs(folder: Path) -> None:
    """Write my.h5, whose true fields are all `SHIFT`, landmarks.csv and two models."""
    deltas = np.broadcast_to(np.float16(SHIFT), (6, *SHAPE, 2))
    positions, datasets = np.array([3000, 3500, 6000, 6500, 9000, 9500]), np.array([1, 1, 2, 2, 2, 2])
    arrays = {"deltas_xy": deltas, "inv_deltas_xy": -deltas, "p": positions, "dataset_id": datasets}
    write_h5(folder / "my.h5", origin="phantom", **arrays)
    (folder / "landmarks.csv").write_text(
        "sample,reference_x,reference_y,moving_x,moving_y\n0,10,10,13,8\n0,20,12,23,10\n1,15,15,18,14\n"
    )
    save_model(GlobalAffineNet((2,), (), SHAPE), folder / "identity.pt")
    save_model(Shift(*SHIFT), folder / "perfect.pt")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def perfect(tmp_path_factory) -> dict[str, list[dict[str, str]]]:
    """The rows of a network that knows the truth, and of its baselines, with landmarks."""
    with contextlib.chdir(tmp_path_factory.mktemp("perfect")):
        write_inputs(Path())
        return evaluated("model.path=perfect.pt", ALLOW, "split=all", "landmarks=landmarks.csv")


def configured(*overrides: str):
    tiny = [
        "data.path=my.h5",
        "data.image_shape=[32,48]",
        "atlas=phantom",
        "atlas.spacing_um=1100",
        "out=out",
        "n_resamples=50",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", [*tiny, *overrides])


def evaluated(*overrides: str) -> dict[str, list[dict[str, str]]]:
    """Evaluate, and return the rows of metrics.csv by method."""
    with (evaluate(configured(*overrides)) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [r for r in rows if r["method"] == name] for name in dict.fromkeys(r["method"] for r in rows)
    }


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


def shift_lengths() -> tuple[float, float]:
    """Return the length of `SHIFT` in px and in µm, on the 8 × 11.4 mm of the phantom's planes."""
    x_um, y_um = 11400 / (SHAPE[1] - 1), 8000 / (SHAPE[0] - 1)
    return math.hypot(*SHIFT), math.hypot(SHIFT[0] * x_um, SHIFT[1] * y_um)


def test_a_perfect_prediction_has_no_error(perfect):
    rows = perfect["network"]
    assert len(rows) == 6
    perfect = {
        "displacement/distance_px": 0, "displacement/distance_um": 0, "displacement/angular_error_deg": 0,
        "regions/dice": 1, "regions/iou": 1, "regions/dice/depth_1": 1, "regions/hd95_um": 0,
        "regions/lost": 0, "truth/mse": 0, "truth/ssim": 1, "truth/psnr": 100, "regularity/folding": 0,
        "regularity/log_jacobian_std": 0, "inverse/consistency_px": 0,
    }  # fmt: skip
    assert column(rows, "displacement/r2") == []  # a shift does not vary
    for name, value in perfect.items():
        assert column(rows, name) == pytest.approx([value] * 6, abs=1e-6), name
    assert column(rows[:2], "landmarks/tre_px") == [0, 1]  # the third landmark is 1 px beside the true field
    assert column(rows[2:], "landmarks/tre_px") == []
    assert column(rows, "reference/mse") != column(rows, "truth/mse")
    assert all(0 < seconds < 10 for seconds in column(rows, "time/seconds"))


def test_a_known_shift_gives_known_distances(perfect):
    px, um = shift_lengths()
    rows = perfect["identity"]
    assert column(rows, "displacement/distance_px") == pytest.approx([px] * 6, rel=1e-5)
    assert column(rows, "displacement/distance_um") == pytest.approx([um] * 6, rel=1e-5)
    assert column(rows[:1], "landmarks/tre_px") == pytest.approx([px], rel=1e-5)
    assert column(rows[:1], "landmarks/tre_um") == pytest.approx([um], rel=1e-5)
    assert column(rows[:1], "landmarks/rtre") == pytest.approx([px / math.hypot(*SHAPE)], rel=1e-5)
    assert all(0 < dice < 1 for dice in column(rows, "regions/dice"))
    assert column(rows, "time/seconds") == []
    assert column(perfect["affine"], "displacement/distance_px") == pytest.approx([0] * 6, abs=1e-3)


def test_landmarks_may_name_the_section_where_it_has_one_sample(folder):
    write_h5(folder / "my.h5", origin="phantom", image_id=np.arange(6))
    text = Path("landmarks.csv").read_text()
    Path("landmarks.csv").write_text(text.replace("sample,", "image_id,").replace("\n1,", "\n4,"))
    rows = evaluated("model.path=identity.pt", "split=all", "landmarks=landmarks.csv", "baselines=[]")[
        "network"
    ]
    assert [bool(row["landmarks/tre_px"]) for row in rows] == [True, False, False, False, True, False]


def test_data_of_another_size_are_measured_at_the_working_size(folder):
    save_model(Shift(0.0, 0.0), "any_size.pt")
    twice = ["data.image_shape=[63,95]", "landmarks=landmarks.csv"]  # aligned corners: 62 / 31 = 94 / 47 = 2
    (row, *_) = evaluated("model.path=any_size.pt", ALLOW, "split=all", *twice)["network"]
    px, um = shift_lengths()
    assert float(row["displacement/distance_px"]) == pytest.approx(2 * px, rel=1e-5)
    assert float(row["landmarks/tre_px"]) == pytest.approx(2 * px, rel=1e-5)
    assert float(row["landmarks/rtre"]) == pytest.approx(2 * px / math.hypot(63, 95), rel=1e-5)
    assert float(row["landmarks/tre_um"]) == pytest.approx(um, rel=1e-5)


def test_an_identity_network_is_the_identity_baseline(folder):
    methods = evaluated("model.path=identity.pt", "split=all")
    for network, identity in zip(methods["network"], methods["identity"], strict=True):
        for name in network.keys() - {"method", "time/seconds"}:
            assert network[name] == identity[name], name


def test_everything_is_written_and_printed(folder, capsys):
    noise = "data.dark_ground=false"  # as sections on a slide, images of noise show nothing
    wanted = ["split=all", "n_viewers=3", "perceptual_weights=random", noise]
    evaluate(configured("model.path=identity.pt", *wanted))
    assert {p.name for p in folder.glob("out/*")} == {
        "metrics.csv",
        "summary.csv",
        "summary.json",
        "report.html",
    }
    content = json.loads((folder / "out" / "summary.json").read_text())
    assert content["model"] == "identity.pt"
    assert content["data"] == "my.h5"
    assert (content["n_samples"], content["n_sections"]) == (6, 3)
    assert content["versions"]["torch"]
    assert content["config"]["baselines"] == ["identity", "affine"]
    assert content["summary"].keys() == {"all", "1", "2"}
    assert content["summary"]["2"]["affine"]["displacement/distance_px"]["n_sections"] == 2
    assert content["summary"]["all"]["network"]["truth/perceptual"]["mean"] > 0
    page = (folder / "out" / "report.html").read_text()
    assert page.count('<article class="view"') == 3
    assert page.count("data:image/webp") == 3 * 4
    shown = capsys.readouterr().out
    for expected in ("vector distance (µm)", "identity", "affine", "out"):
        assert expected in shown


def test_a_package_that_is_not_installed_has_no_version(folder, monkeypatch):
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", version)
    out = evaluate(
        configured("model.path=identity.pt", "split=all", "segmentation=false", "baselines=identity")
    )
    content = json.loads((out / "summary.json").read_text())
    assert content["versions"]["torch"] is None
    assert content["summary"]["all"].keys() == {"network", "identity"}


def test_only_the_samples_of_the_split_are_measured(folder):
    split = ["data.split_seed=4", "data.val_fraction=0.3"]
    val = evaluated("model.path=identity.pt", *split)["network"]
    train_ = evaluated("model.path=identity.pt", "split=train", "out=other", *split)["network"]
    atlas = phantom_atlas(image_shape=SHAPE, spacing_um=1100.0)
    module = RegistrationDataModule(
        "my.h5", atlas=atlas, image_shape=SHAPE, split_seed=4, val_fraction=0.3, batch_size=2
    )
    module.setup()
    assert column(val, "sample") == module.val_split.tolist()
    assert column(train_, "sample") == module.train_split.tolist()


def test_a_run_on_demo_data_is_evaluated_on_its_own_validation_sections(folder):
    demo = ["data=demo", "data.image_shape=[32,48]", "data.n_sections=4", "data.fields_per_section=1",
            "data.batch_size=2", "atlas=phantom", "atlas.spacing_um=1100"]  # fmt: skip
    quiet = ["trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "callbacks.progress=null",
             "callbacks.summary=null", "callbacks.figure=null", "logger=none", "run_dir=run",
             "data.split_seed=3"]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train(compose("train", ["model=global", *demo, *quiet]))
        checkpoint = "model.path=run/checkpoints/best.ckpt"
        with pytest.raises(InputError, match=r"data\.split_seed is 0, .* with 3: .*data\.split_seed=3"):
            evaluate(compose("evaluate", [checkpoint, "out=out", *demo]))
        out = evaluate(compose("evaluate", [checkpoint, "out=out", *demo, "data.split_seed=3"]))
    trained = json.loads(Path("run/metrics.json").read_text())["val/vector_distance"]
    summary = json.loads((out / "summary.json").read_text())["summary"]["all"]["network"]
    assert summary["displacement/distance_px"]["mean"] == pytest.approx(trained, rel=1e-4)


def test_open_settings_come_from_the_training(folder, capsys):
    open_ = ["data.image_shape=null", "split=all", "segmentation=false", "baselines=[]"]
    out = evaluate(configured("model.path=identity.pt", *open_))
    assert json.loads((out / "summary.json").read_text())["image_shape"] == list(SHAPE)
    assert re.search(r"^data\.image_shape=\[32,48\].*identity\.pt", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(InputError, match=r"perfect\.pt .*data\.image_shape=\[HEIGHT,WIDTH\]"):
        evaluate(configured("model.path=perfect.pt", ALLOW, "out=other", *open_))


@pytest.mark.parametrize(
    ("trained", "told", "dark"),
    [(None, None, True), (False, None, False), (None, False, False), (False, True, True)],
)
def test_sections_on_bright_slides_are_turned_dark_as_in_use_or_as_in_training(folder, trained, told, dark):
    """Sections that are nearly white all over: seen as they are, or nearly black."""
    write_h5(folder / "bright.h5", origin="phantom", img=np.full((6, *SHAPE), 240, np.uint8))
    config = {} if trained is None else {"data": {"dark_ground": trained}}
    save_model(Shift(0.0, 0.0), "known.pt", origin=ModelOrigin(image_shape=SHAPE, config=config))
    override = [] if told is None else [f"data.dark_ground={str(told).lower()}"]
    quick = ["segmentation=false", "baselines=[]", "split=all", "n_viewers=0"]
    rows = evaluated("model.path=known.pt", ALLOW, "data.path=bright.h5", *quick, *override)["network"]
    difference = np.mean(column(rows, "reference/mae"))  # most of the phantom is dark
    assert difference < 0.4 if dark else difference > 0.6


def test_without_regions_an_atlas_needs_no_annotation(folder):
    rows = evaluated("model.path=identity.pt", "segmentation=false")["network"]
    assert "regions/dice" not in rows[0]
    assert 'class="outlines"' not in (folder / "out" / "report.html").read_text()


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.path=none.pt"], "there is no model none.pt"),
        (["model.path=other.pt"], "expected a model file"),
        (["model.path=my.h5"], "my.h5: expected a model file"),
        (["model.path=perfect.pt"], "Shift"),
        (["model.path=identity.pt", "data.image_shape=[64,96]"], "set data.image_shape=[32,48]"),
        (["model.path=identity.pt", "data.path=none.h5"], "none.h5"),
        (["model.path=identity.pt", "data.path=???"], "full_key: data.path"),
        (["model.path=???"], "full_key: model.path"),
        (["model.path=identity.pt", "data.path=identity.pt"], "not an h5 file"),
        (["model.path=identity.pt", "out=landmarks.csv"], "landmarks.csv already exists"),
        (["model.path=identity.pt", "split=test"], "There are: all, train, val"),
        (["model.path=identity.pt", "baselines=[identity,afine]"], "Did you mean affine"),
        (["model.path=identity.pt", "landmarks=none.csv"], "landmarks: none.csv: cannot be read"),
        (["model.path=identity.pt", "perceptual_weights=my.h5"], "expected a state dict"),
        (["model.path=identity.pt", "n_viewers=-1"], "n_viewers: expected at least 0, got -1"),
        (["model.path=identity.pt", "segmentation=maybe"], "segmentation: expected true or false, got maybe"),
        (["model.path=identity.pt", "baselines=afine"], "unknown baseline 'afine'. Did you mean affine"),
        (["model.path=identity.pt", "device=tpu"], "device: expected a device of this machine"),
        (["model.path=nan.pt", ALLOW], "expected finite fields, but dvf of 'network' holds NaN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_gives_one_sentence_and_leaves_nothing(folder, overrides, message, capsys):
    torch.save({"weights": torch.zeros(2)}, "other.pt")
    save_model(Shift(math.nan, 0.0), "nan.pt")
    before = set(folder.iterdir())
    with pytest.raises(SystemExit), readable_errors():
        evaluate(configured(*overrides))
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert set(folder.iterdir()) == before


def test_online_samples_cannot_be_evaluated(folder):
    small = ["data.image_shape=[32,48]", "atlas=phantom", "atlas.spacing_um=1100"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", ["model.path=identity.pt", "out=out", "data=online", *small])
    with pytest.raises(InputError, match=r"^data: expected annotated samples"):
        evaluate(config)


def test_an_atlas_without_annotation_says_so(folder):
    np.save("atlas.npy", np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8))
    atlas = ["atlas=file", "atlas.path=atlas.npy", "atlas.spacing_um=1100"]
    with pytest.raises(InputError, match=r"'atlas' holds no annotation: .* segmentation=false"):
        evaluate(configured("model.path=identity.pt", *atlas))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "landmarks: bad.csv: expected the columns sample, .* found none: image_id ",
        ),
        (
            "sample,reference_x,reference_y,moving_x\n",
            "found 'sample', 'reference_x', 'reference_y', 'moving_x'",
        ),
        ("reference_x,reference_y,moving_x,moving_y\n", "expected the columns sample"),
        (
            "sample,reference_x,reference_y,moving_x,moving_y\n0,1,2,3,four\n",
            "line 2, moving_y: expected a number, found 'four'",
        ),
        (
            "sample,reference_x,reference_y,moving_x,moving_y\n0,1,2,3,4\n0,1,2,3\n",
            "line 3: expected 5 cells, found 4",
        ),
        (
            "sample,reference_x,reference_y,moving_x,moving_y\n0,1,2,3,nan\n",
            "line 2, moving_y: expected a number, found 'nan'",
        ),
        ("sample,reference_x,reference_y,moving_x,moving_y\n99,1,2,3,4\n", "my.h5 has no sample 99"),
        ("image_id,reference_x,reference_y,moving_x,moving_y\n1000,1,2,3,4\n", "landmarks: .*image_id"),
        (
            "sample,reference_x,reference_y,moving_x,moving_y\n",
            "landmarks: .*split=val",
        ),
    ],
)
def test_landmarks_that_are_wrong(folder, text, message):
    (folder / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        evaluate(configured("model.path=identity.pt", "landmarks=bad.csv"))
    assert not (folder / "out").exists()


def on_its_atlas(checkpoint: str, *overrides: str):
    """Return the configuration of an evaluation that does not name an atlas."""
    options = [f"model.path={checkpoint}", ALLOW, "data.path=my.h5", "out=out", "split=all", "baselines=[]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", [*options, "n_resamples=50", *overrides])


def write_trained_on(atlas: dict) -> None:
    """Write known.pt, a network that was trained on `atlas`, and its atlas.h5."""
    with h5py.File("atlas.h5", "w") as file:
        file["template"], file["annotation"] = phantom_volume(shape=(12, *SHAPE), seed=3)
    config = {"atlas": {"image_shape": list(SHAPE), "with_annotation": False, **atlas}}
    save_model(Shift(*SHIFT), "known.pt", origin=ModelOrigin(image_shape=SHAPE, config=config))


FROM_FILE = {"_target_": "atlalign.atlas.atlas.file_atlas", "path": "atlas.h5", "spacing_um": 1100.0}


def test_default_atlas_is_that_of_the_training(folder, capsys):
    write_h5(folder / "my.h5")
    write_trained_on(FROM_FILE)
    content = json.loads((evaluate(on_its_atlas("known.pt")) / "summary.json").read_text())
    assert content["atlas"] == "atlas"
    assert content["config"]["atlas"] == {**FROM_FILE, "image_shape": list(SHAPE), "with_annotation": True}
    assert content["summary"]["all"]["network"]["regions/dice"]["n_sections"] > 0
    assert re.search(r"^atlas=file atlas\.path=atlas\.h5, .*known\.pt", capsys.readouterr().out, re.MULTILINE)


def test_given_atlas_settings_override_those_of_the_model(folder):
    write_h5(folder / "my.h5")
    write_trained_on({**FROM_FILE, "spacing_um": 25.0})
    config = on_its_atlas("known.pt", "+atlas.spacing_um=1100")
    found = json.loads((evaluate(config) / "summary.json").read_text())["config"]["atlas"]
    assert (found["path"], found["spacing_um"]) == ("atlas.h5", 1100)


def test_given_atlas_overrides_that_of_the_model(folder):
    write_trained_on(FROM_FILE)
    config = on_its_atlas("known.pt", "atlas=phantom", "atlas.spacing_um=1100")
    assert json.loads((evaluate(config) / "summary.json").read_text())["atlas"] == "phantom"


@pytest.mark.parametrize(
    ("atlas", "message"),
    [
        ({**FROM_FILE, "path": "gone.h5"}, "^atlas: .* gone.h5.*atlas.path=FILE"),
        ({**FROM_FILE, "ontology_path": "gone.csv"}, "^atlas: .* gone.csv"),
        ({"_target_": "os.mkdir", "path": "atlas.h5"}, "^atlas: .* os.mkdir"),
        (
            {**FROM_FILE, "axes": {"_target_": "os.mkdir", "path": "out"}},
            "^atlas: .* axes",
        ),
        ({**FROM_FILE, "template": "${oc.env:HOME}"}, "^atlas: .* template"),
        (None, "my.h5: expected sections of the phantom"),
    ],
)
def test_sections_are_not_measured_against_a_drawn_brain(folder, atlas, message):
    write_h5(folder / "my.h5")
    if atlas is None:
        save_model(Shift(*SHIFT), "known.pt", origin=ModelOrigin(image_shape=SHAPE))
    else:
        write_trained_on(atlas)
    with pytest.raises(InputError, match=message):
        evaluate(on_its_atlas("known.pt"))
    assert not (folder / "out").exists()


def test_sections_of_the_phantom_are_measured_against_it(folder):
    save_model(Shift(*SHIFT), "known.pt", origin=ModelOrigin(image_shape=SHAPE))
    content = json.loads((evaluate(on_its_atlas("known.pt")) / "summary.json").read_text())
    assert content["atlas"] == "phantom"


def test_evaluating_training_samples_gives_a_warning(folder, capsys):
    data = {"_target_": "atlalign.data.datamodule.RegistrationDataModule", "path": str(folder / "my.h5")}
    save_model(Shift(*SHIFT), "known.pt", origin=ModelOrigin(image_shape=SHAPE, config={"data": data}))
    warning = re.compile(r"split=all: .*training samples of known\.pt")
    for split in ("all", "val"):
        evaluate(configured("model.path=known.pt", ALLOW, f"split={split}", f"out={split}", "baselines=[]"))
        assert bool(warning.search(capsys.readouterr().out)) == (split == "all")


def test_a_network_trained_at_another_size_is_refused(folder):
    save_model(Shift(*SHIFT), "small.pt", origin=ModelOrigin(image_shape=(64, 96)))
    with pytest.raises(InputError, match=r"small\.pt .*\(64, 96\): .*data\.image_shape=\[64,96\]"):
        evaluate(configured("model.path=small.pt", ALLOW))


def test_help_gives_examples():
    finished = subprocess.run(
        [sys.executable, "evaluate.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "atlalign evaluate model.path=runs/X/checkpoints/best.ckpt" in finished.stdout
