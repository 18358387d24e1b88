"""Samples, batches and splits, on files whose content is known."""

import multiprocessing
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from atlalign.data.datamodule import RegistrationDataModule, split_samples
from atlalign.data.dataset import RegistrationDataset, SampleKey, SeededSampler, complete
from atlalign.errors import InputError
from atlalign.geometry import warp
from tests.conftest import SHAPE, write_h5


def datamodule(path, atlas, **arguments) -> RegistrationDataModule:
    arguments = {"image_shape": SHAPE, "batch_size": 2, "val_fraction": 1 / 3, **arguments}
    module = RegistrationDataModule(path, atlas=atlas, **arguments)
    module.prepare_data()
    module.setup()
    return module


def batches(loader: DataLoader) -> list:
    return [complete(raw) for raw in loader]


def test_sample_matches_file_and_atlas(tmp_path, atlas):
    image = np.zeros((6, *SHAPE), np.uint8)
    image[3, 10, 20] = 255
    deltas = np.zeros((6, *SHAPE, 2), np.float16)
    deltas[3, :, :, 0], deltas[3, :, :, 1] = 4, -2
    path = write_h5(tmp_path / "known.h5", img=image, deltas_xy=deltas, inv_deltas_xy=-deltas)
    dataset = RegistrationDataset(path, atlas, return_inverse=True)
    batch = complete(next(iter(DataLoader(dataset, sampler=[SampleKey(3, 0)]))))
    assert batch.moving[0, 0, 10, 20] == 1
    assert batch.registered[0, 0, 12, 16] == pytest.approx(
        1, abs=1e-4
    )  # (x, y) + (4, −2) is where the point lies
    assert torch.equal(batch.dvf[0, :, 5, 5], torch.tensor([4.0, -2.0]))
    assert torch.equal(batch.inv_dvf, -batch.dvf)
    assert torch.equal(batch.reference[0], atlas.section(300))
    assert (int(batch.position_um), int(batch.image_id), int(batch.dataset_id)) == (300, 1001, 7)
    assert complete(next(iter(DataLoader(RegistrationDataset(path, atlas))))).inv_dvf is None


def test_bright_slides_become_dark_on_request(tmp_path, atlas):
    """A dark spot on a light slide and a bright one on a dark slide become the same; the registered images as well."""
    image = np.full((6, *SHAPE), 250, np.uint8)
    image[:, 10, 20] = 55
    image[1] = 255 - image[1]
    nowhere = np.zeros((6, *SHAPE, 2), np.float16)
    path = write_h5(tmp_path / "bright.h5", img=image, deltas_xy=nowhere, inv_deltas_xy=nowhere)
    for wanted in (False, True):
        dataset = RegistrationDataset(path, atlas, dark_ground=wanted)
        batch = complete(next(iter(DataLoader(dataset, batch_size=2))))
        torch.testing.assert_close(batch.registered, batch.moving)
        ground, spot = ((batch.moving[:, 0, y, x] * 255).round().tolist() for y, x in ((0, 0), (10, 20)))
        assert (ground, spot) == (([0, 0], [255, 255]) if wanted else ([250, 5], [55, 200]))


def test_a_ground_of_0_leaves_images_as_they_are_also_beside_others_in_a_batch(tmp_path, atlas):
    """Not even their range changes; of what has a ground, the range becomes that of all bits."""
    image = np.zeros((6, *SHAPE), np.uint8)
    image[:, 8:20, 10:30] = np.random.default_rng(0).integers(40, 120, (6, 12, 20))
    image[1] = 200 - image[1]
    path = write_h5(tmp_path / "dim.h5", img=image)
    kept, changed = (
        next(iter(DataLoader(RegistrationDataset(path, atlas, dark_ground=wanted), batch_size=2)))["moving"]
        for wanted in (False, True)
    )
    assert kept.dtype == changed.dtype == torch.uint8
    assert torch.equal(changed[0], kept[0])
    assert (int(changed[1].min()), int(changed[1].max())) == (0, 255)


def test_another_working_size_resizes_images_and_fields(tmp_path, atlas):
    ramp = np.tile(np.linspace(0, 255, 95).round().astype(np.uint8), (6, 63, 1))
    deltas = np.zeros((6, 63, 95, 2), np.float16)
    deltas[..., 0], deltas[..., 1] = 6, 3
    path = write_h5(tmp_path / "large.h5", shape=(63, 95), img=ramp, deltas_xy=deltas, inv_deltas_xy=deltas)
    batch = complete(next(iter(DataLoader(RegistrationDataset(path, atlas)))))
    assert batch.moving.shape == batch.reference.shape == (1, 1, *SHAPE)
    torch.testing.assert_close(
        batch.moving[0, 0, 16], torch.linspace(0, 1, 48), atol=0.02, rtol=0
    )  # corners stay corners
    torch.testing.assert_close(batch.dvf[0, :, 9, 9], torch.tensor([6 * 47 / 94, 3 * 31 / 62]))


class TestSplit:
    image_ids = np.array([5, 5, 7, 7, 7, 8, 9, 9, 9, 9])

    def test_by_fraction_never_splits_an_image(self):
        for seed in range(20):
            train, val = split_samples(self.image_ids, val_fraction=0.5, seed=seed)
            assert sorted([*train, *val]) == list(range(10))
            assert not set(self.image_ids[train]) & set(self.image_ids[val])
            assert len(set(self.image_ids[val])) == 2

    def test_depends_on_the_seed_alone(self):
        splits = {tuple(split_samples(self.image_ids, seed=seed)[1]) for seed in range(20)}
        assert len(splits) > 2
        again = [split_samples(self.image_ids, seed=3)[1].tolist() for _ in range(2)]
        assert again[0] == again[1]

    def test_one_list_leaves_all_other_images_to_the_other_split(self, tmp_path):
        train, val = split_samples(self.image_ids, val_indexes=[2, 5])
        assert val.tolist() == [2, 5]
        assert train.tolist() == [0, 1, 6, 7, 8, 9]  # 3 and 4 are copies of image 7
        np.save(tmp_path / "train.npy", np.array([0, 6]))
        train, val = split_samples(self.image_ids, train_indexes=str(tmp_path / "train.npy"))
        assert (train.tolist(), val.tolist()) == ([0, 6], [2, 3, 4, 5])

    def test_both_lists_are_taken_as_they_are(self):
        train, val = split_samples(self.image_ids, train_indexes=[6, 0], val_indexes=[3])
        assert (train.tolist(), val.tolist()) == ([6, 0], [3])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"train_indexes": [2], "val_indexes": [3]}, r"train_indexes and val_indexes: .* \(7\)"),
            ({"val_indexes": [10]}, r"val_indexes: expected 0 to 9, found \[10\]"),
            ({"train_indexes": [-1]}, r"train_indexes: expected 0 to 9, found \[-1\]"),
            ({"val_indexes": [1, 1]}, "val_indexes: .* repeated"),
            ({"val_indexes": [0.5]}, "expected a list of whole numbers"),
            ({"val_indexes": []}, "expected a list of whole numbers"),
            ({"val_indexes": "absent.npy"}, "val_indexes: .* absent.npy"),
            ({"val_indexes": list(range(10))}, "for training, found none"),
        ],
    )
    def test_bad_indexes(self, arguments, message):
        with pytest.raises(InputError, match=message):
            split_samples(self.image_ids, **arguments)

    def test_pickled_indexes_are_not_run(self, tmp_path):
        np.save(tmp_path / "evil.npy", np.array([print], dtype=object), allow_pickle=True)
        with pytest.raises(InputError, match=r"val_indexes: .*evil\.npy"):
            split_samples(self.image_ids, val_indexes=tmp_path / "evil.npy")

    def test_a_single_image_cannot_be_split(self):
        with pytest.raises(InputError, match="for validation, found none"):
            split_samples(np.array([3, 3, 3]))


def test_the_split_depends_on_its_own_seed_alone(tmp_path, atlas):
    path = write_h5(tmp_path / "ten.h5", n=10)
    splits = [tuple(datamodule(path, atlas, seed=seed).val_split) for seed in range(5)]
    assert len(set(splits)) == 1
    others = [tuple(datamodule(path, atlas, split_seed=seed).val_split) for seed in range(8)]
    assert len(set(others)) > 1


class TestSampler:
    def order(self, sampler):
        return [key.sample for key in sampler]

    def test_order_depends_on_seed_and_epoch_alone(self):
        sampler = SeededSampler(range(50), seed=1, shuffle=True)
        first = list(sampler)
        assert first == list(SeededSampler(range(50), seed=1, shuffle=True))
        assert sorted(key.sample for key in first) == list(range(50))
        sampler.set_epoch(1)
        assert self.order(sampler) != [key.sample for key in first]
        assert self.order(SeededSampler(range(50), seed=2, shuffle=True)) != [key.sample for key in first]

    def test_without_shuffling_only_the_seeds_change(self):
        sampler = SeededSampler([4, 2, 9], seed=1, shuffle=False)
        first = list(sampler)
        sampler.set_epoch(1)
        second = list(sampler)
        assert [k.sample for k in first] == [k.sample for k in second] == [4, 2, 9]
        assert {k.seed for k in first}.isdisjoint(k.seed for k in second)

    def test_processes_share_the_samples_out(self):
        parts = [SeededSampler(range(11), seed=3, shuffle=True, rank=r, world_size=3) for r in range(3)]
        assert sorted(i for part in parts for i in self.order(part)) == list(range(11))
        assert [len(part) for part in parts] == [4, 4, 3]

    def test_processes_batches_are_together_the_one_of_a_single_process(self):
        alone = self.order(SeededSampler(range(11), seed=3, shuffle=True))
        parts = [
            self.order(SeededSampler(range(11), seed=3, shuffle=True, rank=r, world_size=2, even=True))
            for r in range(2)
        ]
        assert [len(part) for part in parts] == [5, 5]
        for first in range(0, 4, 2):  # batches of two in two processes
            together = parts[0][first : first + 2] + parts[1][first : first + 2]
            assert sorted(together) == sorted(alone[2 * first : 2 * first + 4])

    def test_interrupted_epoch_resumes_and_the_next_is_complete(self):
        whole = SeededSampler(range(9), seed=3, shuffle=True, epoch=4)
        rest = SeededSampler(range(9), seed=3, shuffle=True, epoch=4, start=6)
        assert list(rest) == list(whole)[6:]
        assert len(rest) == 9
        for sampler in (whole, rest):
            sampler.set_epoch(5)
        assert list(rest) == list(whole)


def test_training_drops_the_last_partial_batch_and_validation_does_not(tmp_path, atlas):
    path = write_h5(tmp_path / "ten.h5", n=10)
    module = datamodule(path, atlas, batch_size=4, val_fraction=0.5)
    assert [len(b.moving) for b in batches(module.train_dataloader())] == [4]
    assert [len(b.moving) for b in batches(module.val_dataloader())] == [4]
    assert (len(module.train_split), len(module.val_split)) == (6, 4)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_and_main_process_read_the_same(h5_file, atlas, context):
    alone = datamodule(h5_file, atlas, return_inverse=True)
    expected = batches(alone.val_dataloader())
    # The parent has used its handle: a forked worker that shared it would read garbage.
    module = datamodule(h5_file, atlas, return_inverse=True, num_workers=2, multiprocessing_context=context)
    _ = module.val_dataset[0], module.train_dataset[0]
    for got, want in zip(batches(module.val_dataloader()), expected, strict=True):
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one, other)


def test_workers_are_started_for_a_gpu_unless_a_number_is_given(h5_file, atlas, monkeypatch):
    """Of 16 cores, one stays for each of the training's processes."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)

    def workers(device: str, n_devices: int = 1, **given: int) -> int:
        module = datamodule(h5_file, atlas, **given)
        strategy = SimpleNamespace(root_device=torch.device(device))
        module.trainer = SimpleNamespace(strategy=strategy, num_devices=n_devices)
        return module._workers()

    assert [workers("cuda"), workers("cuda", 4), workers("cpu", 4)] == [8, 3, 0]
    assert [workers("cuda", num_workers=0), workers("cpu", num_workers=2)] == [0, 2]


def test_each_process_opens_the_file_once(h5_file, atlas):
    dataset = RegistrationDataset(h5_file, atlas)
    assert dataset._arrays == {}
    _ = dataset[0], dataset[1]
    handles = dataset._arrays
    _ = dataset[2]
    assert dataset._arrays is handles
    assert pickle.loads(pickle.dumps(dataset))._arrays == {}
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_handle_after_read, (dataset,)) != id(handles["img"])


def _handle_after_read(dataset):
    _ = dataset[0]
    return id(dataset._arrays["img"])


def brighter(image):
    return image + 0.25


def test_augmenters_change_training_alone_and_the_registered_image_with_it(h5_file, atlas):
    plain = datamodule(h5_file, atlas, shuffle=False)
    module = datamodule(h5_file, atlas, shuffle=False, augment={"moving": brighter, "reference": None})
    for got, want in zip(batches(module.train_dataloader()), batches(plain.train_dataloader()), strict=True):
        torch.testing.assert_close(got.moving, (want.moving + 0.25).clamp(0, 1))
        assert torch.equal(got.reference, want.reference)
        assert torch.equal(got.dvf, want.dvf)
        torch.testing.assert_close(got.registered, warp(got.moving, got.dvf))
    for got, want in zip(batches(module.val_dataloader()), batches(plain.val_dataloader()), strict=True):
        assert torch.equal(got.moving, want.moving)


def test_bad_arguments_of_the_data_module(h5_file, atlas, tmp_path):
    with pytest.raises(InputError, match=r"data.image_shape: .*\(32, 48\), .* \(64, 64\)"):
        datamodule(h5_file, atlas, image_shape=(64, 64))
    with pytest.raises(InputError, match="batch_size: expected at least 1"):
        datamodule(h5_file, atlas, batch_size=0)
    with pytest.raises(InputError, match="found 4 of 6 samples"):
        datamodule(h5_file, atlas, batch_size=5)
    with pytest.raises(InputError, match="val_fraction"):
        datamodule(h5_file, atlas, val_fraction=1.5)
    far = write_h5(tmp_path / "far.h5", p=np.full(6, 1100))
    with pytest.raises(InputError, match=r"positions in \[0, 1000\] µm"):
        datamodule(far, atlas)


def test_sections_of_unknown_origin_do_not_meet_the_phantom(h5_file, atlas, tmp_path):
    drawn = replace(atlas, name="phantom")
    with pytest.raises(InputError, match=r"phantom.* atlas=allen"):
        datamodule(h5_file, drawn)
    datamodule(h5_file, atlas)
    datamodule(write_h5(tmp_path / "drawn.h5", origin="phantom"), drawn)
