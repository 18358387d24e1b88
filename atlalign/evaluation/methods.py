"""The registration methods that an evaluation compares: a network, and baselines that need no training."""

import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from atlalign.data.dataset import RegistrationBatch
from atlalign.errors import InputError, unknown_name
from atlalign.geometry import affine_to_dvf, identity_grid, invert, invert_affine
from atlalign.networks.contract import call_network
from atlalign.networks.memory_format import fastest_memory_format


class Estimate(NamedTuple):
    """The registration of one section.

    Attributes:
        dvf: (1, 2, H, W) in pixels, on the CPU.
        inv_dvf: The method's own inverse of `dvf`, likewise.
        seconds: Time to compute `dvf`; None for baselines that compute no registration, such as the identity.
    """

    dvf: Tensor
    inv_dvf: Tensor
    seconds: float | None


Method = Callable[[RegistrationBatch], Estimate]
"""Registers a batch of one section."""


def network_method(network: nn.Module, device: torch.device) -> Method:
    """Return the method that applies `network`; its inverse is the network's own, or the swapped images' field."""
    network = network.to(device).to(memory_format=fastest_memory_format(device)).eval()

    def register(batch: RegistrationBatch) -> Estimate:
        reference, moving = batch.reference.to(device), batch.moving.to(device)
        with torch.no_grad():
            started = _now(device)
            output = call_network(network, reference, moving)
            seconds = _now(device) - started
            inverse = network(moving, reference).dvf if output.inv_dvf is None else output.inv_dvf
        return Estimate(output.dvf.float().cpu(), inverse.float().cpu(), seconds)

    return register


def baseline(name: str) -> Method:
    """Return the baseline `name`.

    - identity: no registration. - affine: the affine map that fits the true field best by least squares. It is fitted
    to the truth, so no affine method can reach a smaller mean squared distance. - ants_affine, ants_syn: ANTs' `Affine`
    and `SyN` with their defaults (mutual information). - ants_syncc: ANTs' `SyNCC`, an affine map by mutual information
    and SyN by cross-correlation in windows of radius 4, with up to 2100, 1200, 1200 and 20 iterations at 1/4, 1/3, 1/2
    and full resolution. - elastix: elastix' default affine map, then its default B-spline (mutual information) with
    knots every 10 px.

    Raises:
        InputError: If there is no baseline of this name, or it needs ANTs or elastix, which is not installed.
    """
    if name not in _BASELINES:
        raise unknown_name("baseline", name, _BASELINES)
    if name.startswith("ants"):
        _import_ants()
    if name == "elastix":
        _import_itk()
    return _BASELINES[name]


def _identity(batch: RegistrationBatch) -> Estimate:
    zero = torch.zeros_like(batch.dvf)
    return Estimate(zero, zero, None)


def _best_affine(batch: RegistrationBatch) -> Estimate:
    shape = batch.dvf.shape[-2], batch.dvf.shape[-1]
    matrix = fit_affine(batch.dvf)
    dvf, inverse = affine_to_dvf(matrix, shape), affine_to_dvf(invert_affine(matrix), shape)
    return Estimate(dvf.float(), inverse.float(), None)


def fit_affine(dvf: Tensor) -> Tensor:
    """Return the affine maps (B, 2, 3) that fit the fields (B, 2, H, W) best by least squares, in float64."""
    shape = dvf.shape[-2], dvf.shape[-1]
    grid = identity_grid(shape, torch.float64, dvf.device)
    points = grid.flatten(2).mT.expand(len(dvf), -1, -1)
    targets = (grid + dvf).flatten(2).mT
    solution: Tensor = torch.linalg.lstsq(torch.cat([points, torch.ones_like(points[..., :1])], -1), targets)[
        0
    ]
    return solution.mT


def _ants(batch: RegistrationBatch, transform: str) -> Estimate:
    ants = _import_ants()
    # ANTs' axes are x, y; without spacing and origin its millimetres are pixels.
    fixed, moving = (ants.from_numpy(image[0, 0].numpy().T) for image in (batch.reference, batch.moving))
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = ants.registration(fixed, moving, transform, outprefix=f"{folder}/", random_seed=1)
        seconds = time.perf_counter() - started
        there, back = found["fwdtransforms"], found["invtransforms"]
        affine_is_inverted = [Path(path).suffix == ".mat" for path in back]
        dvf = _composed(ants, fixed, there, [False] * len(there), f"{folder}/there_")
        inverse = _composed(ants, moving, back, affine_is_inverted, f"{folder}/back_")
    return Estimate(dvf, inverse, seconds)


def _composed(ants: Any, image: Any, transforms: list[str], inverted: list[bool], prefix: str) -> Tensor:
    """Return the field (1, 2, H, W) that a list of ANTs transforms composes to."""
    import SimpleITK

    path = ants.apply_transforms(image, image, transforms, whichtoinvert=inverted, compose=prefix)
    vectors = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))
    return torch.from_numpy(vectors.astype(np.float32)).permute(2, 0, 1)[None].contiguous()


def _elastix(batch: RegistrationBatch) -> Estimate:
    itk = _import_itk()
    # elastix' arrays have the axes rows, columns; without spacing and origin its millimetres are pixels.
    fixed, moving = (
        itk.GetImageFromArray(image[0, 0].contiguous().numpy()) for image in (batch.reference, batch.moving)
    )
    parameters = itk.ParameterObject.New()
    for stage in ("affine", "bspline"):
        parameters.AddParameterMap(parameters.GetDefaultParameterMap(stage))
    started = time.perf_counter()
    _, found = itk.elastix_registration_method(
        fixed, moving, parameter_object=parameters, log_to_console=False
    )
    seconds = time.perf_counter() - started
    with TemporaryDirectory() as folder:  # the folder where elastix writes a file of the field
        field = itk.transformix_deformation_field(
            moving, found, log_to_console=False, output_directory=folder
        )
        vectors = itk.GetArrayFromImage(field)
    dvf = torch.from_numpy(vectors.astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    return Estimate(dvf, invert(dvf), seconds)


def _import_ants() -> Any:
    _limit_itk_threads()
    try:
        import ants
    except ImportError as error:
        raise InputError(
            "the ANTs baselines need antspyx: pip install 'atlalign-torch[baselines]'"
        ) from error
    return ants


def _import_itk() -> Any:
    _limit_itk_threads()
    try:
        import itk

        # ITK loads its modules on first use. If warnings are errors, the warnings that its types cause end the process.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            itk.ParameterObject, itk.elastix_registration_method  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise InputError(
            "the baseline elastix needs itk-elastix: pip install 'atlalign-torch[baselines]'"
        ) from error
    return itk


def _limit_itk_threads() -> None:
    # ITK reads this when it starts, and would otherwise use all processors: use as many threads as PyTorch.
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(torch.get_num_threads()))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


_BASELINES: dict[str, Method] = {
    "identity": _identity,
    "affine": _best_affine,
    "ants_affine": partial(_ants, transform="Affine"),
    "ants_syn": partial(_ants, transform="SyN"),
    "ants_syncc": partial(_ants, transform="SyNCC"),
    "elastix": _elastix,
}
