"""Everything that the registration of a section depends on besides its image: network, references and options."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlalign.atlas.atlas import open_atlas
from atlalign.atlas.ids import checked_ids
from atlalign.atlas.ontology import read_ontology
from atlalign.io.images import read_image, read_labels
from atlalign.registration.jobs import Job
from atlalign.registration.network import TrainedNetwork
from atlalign.registration.options import Options
from atlalign.registration.quality import WITHOUT_NETWORK, Limit
from atlalign.registration.references import AtlasReferences, ImageReference, References, image_reference


@dataclass(frozen=True)
class Recipe:
    """The network, the references and the options for registering sections.

    Attributes:
        network: The network that registers them.
        references: The atlas or image that they are registered to.
        options: How they are read, placed, refined and judged.
    """

    network: TrainedNetwork
    references: References
    options: Options

    @property
    def limits(self) -> Mapping[str, Limit]:
        """The limits of the measures that are taken."""
        names = self.options.limits if self.network.module is not None else WITHOUT_NETWORK
        return {name: self.options.limits[name] for name in names}

    @property
    def origin(self) -> Mapping[str, Any]:
        """Plain data that identifies the network and the reference; saved with each result."""
        return {**self.network.origin, **self.references.origin}

    def of(self, job: Job) -> "Recipe":
        """Return the recipe with the job's own options.

        Raises:
            InputError: If one of them is invalid.
        """
        return replace(self, options=replace(self.options, **job.options)) if job.options else self


def atlas_recipe(
    atlas: str | Path = "allen",
    *,
    annotation: str | Path | None = None,
    ontology: str | Path | None = None,
    spacing_um: float | None = None,
    axes: str | None = None,
    options: Options | None = None,
    model: str | Path | None = None,
    image_shape: Sequence[int] | None = None,
    device: str = "auto",
    allow: Collection[str] = (),
) -> Recipe:
    """Return the recipe that registers sections to planes of an atlas.

    Args:
        atlas: allen (downloaded once), phantom, or an atlas file.
        annotation: File with the region ids, if the atlas file does not hold them.
        ontology: Table of region names for an atlas file.
        spacing_um: Voxel size of an atlas file; None means the value in the file, or 25 if it has none.
        axes: Directions of an atlas file's axes, such as AP,DV,ML; see `file_atlas`.
        options: How sections are read, placed, refined and judged.
        model: A model file, a model folder or a checkpoint; None means the network that comes with the package, and
            "none" means no network: anchorings and corrections alone place the sections.
        image_shape: The (H, W) of the network's input; None means the size used in training.
        device: auto, cpu, cuda, …; auto takes a GPU if there is one.
        allow: Importable names of your own network classes that the model may use, such as `my_lab.Shift`.

    Raises:
        InputError: If a file cannot be read, or the files do not fit each other.

    Example:
        >>> recipe = atlas_recipe("phantom", image_shape=(64, 96), options=Options(hemisphere="left"))
        >>> recipe.network.image_shape
        (64, 96)
    """
    network = TrainedNetwork.load(model, image_shape=image_shape, device=device, allow=allow)
    opened = open_atlas(
        atlas,
        phantom_shape=network.image_shape,
        annotation=annotation,
        ontology=ontology,
        spacing_um=spacing_um,
        axes=axes,
    )
    return Recipe(network, AtlasReferences(opened, network.image_shape), options or Options())


def image_recipe(
    reference: str | Path,
    *,
    reference_labels: str | Path | None = None,
    reference_pixel_um: float | None = None,
    ontology: str | Path | None = None,
    options: Options | None = None,
    model: str | Path | None = None,
    image_shape: Sequence[int] | None = None,
    device: str = "auto",
    allow: Collection[str] = (),
) -> Recipe:
    """Return the recipe that registers sections to one image.

    Args:
        reference: The image.
        reference_labels: Label image with its region ids.
        reference_pixel_um: Its pixel size; None means the value in the file.
        ontology: Table of region names.
        options: How sections are read, placed, refined and judged.
        model: A model file, a model folder or a checkpoint; None means the network that comes with the package, and
            "none" means no network: anchorings and corrections alone place the sections.
        image_shape: The (H, W) of the network's input; None means the size used in training.
        device: auto, cpu, cuda, …; auto takes a GPU if there is one.
        allow: Importable names of your own network classes that the model may use, such as `my_lab.Shift`.

    Raises:
        InputError: If a file cannot be read, or the files do not fit each other.
    """
    network = TrainedNetwork.load(model, image_shape=image_shape, device=device, allow=allow)
    opened = image_reference(
        read_image(reference),
        None
        if reference_labels is None
        else checked_ids(read_labels(reference_labels), str(reference_labels)),
        network.image_shape,
        pixel_um=reference_pixel_um,
        name=str(reference),
    )
    names = None if ontology is None else read_ontology(ontology)
    return Recipe(network, ImageReference(opened, names, Path(reference).name), options or Options())
