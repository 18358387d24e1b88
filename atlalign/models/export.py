"""Export of networks as graphs for other programs; each graph is compared with its network before the file is kept."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from atlalign.errors import OF_NETWORK, InputError, checked_shape
from atlalign.io.files import written_whole
from atlalign.networks.contract import call_network

INTENSITY_TOLERANCE = 1e-3
FIELD_TOLERANCE_PX = 1e-3
_TRACED_BATCH = 2  # torch.export would fix a batch size of one as a constant
_CHECKED_BATCHES = (1, 3)

Outputs = dict[str, Tensor]
Graph = Callable[[Tensor, Tensor], Outputs]


class Differences(NamedTuple):
    """The largest differences between the outputs of a network and of its export: images and fields."""

    intensity: float
    px: float


def export_model(network: nn.Module, path: str | Path, image_shape: tuple[int, int]) -> Differences:
    """Write a network as a graph that runs without this package, and return how much the outputs of both differ.

    The inputs `reference` and `moving` are float32 (B, 1, H, W) in [0, 1]; B may vary. The outputs are named as in
    `Registration`: `registered`, `dvf` and, if the network returns them, `inv_dvf`, `global_registered`, `global_dvf`.

    Args:
        network: Maps (reference, moving) to a NamedTuple of tensors, such as a `Registration`.
        path: `.onnx`, which needs the extra `export`, or `.pt2` for `torch.export.load`; an existing file is replaced.
        image_shape: (H, W) of the images, which the graph fixes.

    Raises:
        InputError: If the format is unknown, a package is missing, the network does not accept this image size, or
            the outputs for random images differ by more than INTENSITY_TOLERANCE or FIELD_TOLERANCE_PX.
    """
    path = Path(path)
    checked_shape("image_shape", image_shape, bytes_a_pixel=OF_NETWORK)
    write, read = _format(path)
    network = copy.deepcopy(network).cpu().eval()
    named = _Named(network)
    with torch.no_grad():  # a network of another form fails here rather than inside the tracer
        call_network(network, *_random_pair(_TRACED_BATCH, image_shape))
    program = _traced(named, image_shape)
    with written_whole(path) as unfinished:
        write(program, unfinished)
        differences = _differences(named, read(unfinished), image_shape)
        if not (differences.intensity <= INTENSITY_TOLERANCE and differences.px <= FIELD_TOLERANCE_PX):
            raise InputError(
                f"{path} was not written: expected outputs within {INTENSITY_TOLERANCE:g} of the network's "
                f"in intensity and {FIELD_TOLERANCE_PX:g} px, got differences of {differences.intensity:.2g} and "
                f"{differences.px:.2g} px"
            )
    return differences


class _Named(nn.Module):
    """Returns a network's outputs as a dict by name, and omits outputs that are None."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, reference: Tensor, moving: Tensor) -> Outputs:
        outputs = self.network(reference, moving)._asdict()
        return {name: output for name, output in outputs.items() if output is not None}


def _traced(named: nn.Module, image_shape: tuple[int, int]) -> ExportedProgram:
    example = _random_pair(_TRACED_BATCH, image_shape)
    with torch.no_grad():
        batch = {0: torch.export.Dim("batch")}
        return torch.export.export(named, example, dynamic_shapes=(batch, batch))


def _differences(named: Graph, graph: Graph, image_shape: tuple[int, int]) -> Differences:
    """Return the largest differences on random images, for batch sizes other than the traced size."""
    images, fields = [torch.zeros(())], [torch.zeros(())]
    for n_samples in _CHECKED_BATCHES:
        pair = _random_pair(n_samples, image_shape)
        with torch.no_grad():
            expected, found = named(*pair), graph(*pair)
        for name, output in expected.items():
            (fields if name.endswith("dvf") else images).append((found[name] - output).abs().max())
    return Differences(float(torch.stack(images).max()), float(torch.stack(fields).max()))


def _random_pair(n_samples: int, image_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_samples)
    reference, moving = torch.rand(2, n_samples, 1, *image_shape, generator=generator)
    return reference, moving


def _format(path: Path) -> tuple[Callable[[ExportedProgram, Path], None], Callable[[Path], Graph]]:
    """Return the functions that write and read the format given by the ending of a file name."""
    if path.suffix == ".pt2":
        return _write_program, _read_program
    if path.suffix == ".onnx":
        _require_onnx()
        return _write_onnx, _read_onnx
    raise InputError(f"{path}: expected a name that ends in .onnx or .pt2")


def _write_program(program: ExportedProgram, path: Path) -> None:
    buffer = io.BytesIO()  # torch's own writer does not report a full disk
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def _read_program(path: Path) -> Graph:
    return cast(Graph, torch.export.load(path).module())


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX needs packages that are not installed ({error}): pip install 'atlalign-torch[export]'"
        ) from error


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    example, _ = program.example_inputs
    torch.onnx.export(
        program,
        example,
        path,
        input_names=["reference", "moving"],
        output_names=list(program.module()(*example)),
        dynamic_shapes=(
            {0: "batch"},
            {},
        ),  # only names the axis; the program states that both inputs share it
        external_data=False,
        verbose=False,
    )


def _read_onnx(path: Path) -> Graph:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def graph(reference: Tensor, moving: Tensor) -> Outputs:
        outputs = session.run(names, {"reference": reference.numpy(), "moving": moving.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return graph
