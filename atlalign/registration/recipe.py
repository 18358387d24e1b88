"""How sections are registered: with what network, to what, and read and placed in what way; one section by it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from atlalign.atlas.atlas import Atlas, open_atlas
from atlalign.atlas.ids import checked_ids
from atlalign.atlas.ontology import Ontology, read_ontology
from atlalign.atlas.planes import Plane
from atlalign.errors import OF_NETWORK, InputError, check_size, checked_shape
from atlalign.io.files import fingerprint, fingerprint_of
from atlalign.io.images import ImageFile, read_image, read_labels
from atlalign.models import SHIPPED_MODEL, load_model, read_origin
from atlalign.networks.device import chosen_device
from atlalign.networks.memory_format import fastest_memory_format
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options, Side
from atlalign.registration.placement import (
    Placement,
    Reference,
    Section,
    atlas_reference,
    flipped,
    image_reference,
    place,
    read_section,
    turned,
)
from atlalign.registration.quality import Alternative, Quality
from atlalign.registration.register import Registered, register, registered_likeness
from atlalign.registration.turning import likely_turns

NEARBY_UM, FARTHER_UM = (-500.0, 500.0), (-2000.0, -1000.0, 1000.0, 2000.0)
"""Distances from its plane at which a section is registered as well, the latter only in case of doubt."""

_DOUBT = -0.05  # of `better_elsewhere`: sections in their places are clearly less like the planes nearby

_APART = 5.0  # degrees: the network corrects smaller turns

# --- the recipe -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """All that a section's result depends on besides its image.

    Attributes:
        network: At the device that it is to run on.
        image_shape: The (H, W) that it takes.
        reference: Returns what a section is registered to.
        ontology: What the labels mean, if that is known.
        options: How sections are read and placed.
        origin: What tells model and reference from others, as plain data that is kept with each result.
    """

    network: nn.Module
    image_shape: tuple[int, int]
    reference: Callable[[Job, Side | None], Reference]
    ontology: Ontology | None
    options: Options
    origin: Mapping[str, Any]

    def of(self, job: Job) -> "Recipe":
        """Return the recipe with the options that the job has of its own.

        Raises:
            InputError: If one of them is wrong.
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
) -> Recipe:
    """Return the recipe that registers sections to planes of an atlas.

    Args:
        atlas: allen (downloaded once), phantom, or a file.
        annotation: The region ids of an atlas file, if it does not hold them.
        ontology: The names of an atlas file's regions.
        spacing_um: The size of an atlas file's voxels; None takes the file's word, or 25 if it says nothing.
        axes: The directions of an atlas file's axes, such as AP,DV,ML; see `file_atlas`.
        options: How sections are read, placed and refined.
        model: A model file, a folder or a checkpoint; None for the network that comes with the package.
        image_shape: The (H, W) that it takes; that of its training if None.
        device: auto takes a GPU if there is one.

    Raises:
        InputError: If a file cannot be read or does not fit the others.
    """
    trained = _Network.load(model, image_shape, device)
    opened = open_atlas(
        atlas,
        phantom_shape=trained.image_shape,
        annotation_path=annotation,
        ontology_path=ontology,
        spacing_um=spacing_um,
        axes=axes,
    )
    origin = {
        "reference": opened.name,
        "reference_sha256": opened.fingerprint(),
    }
    references = AtlasReferences(opened, trained.image_shape)
    return trained.recipe(references, opened.ontology, options, origin)


def image_recipe(
    reference: str | Path,
    *,
    labels: str | Path | None = None,
    pixel_um: float | None = None,
    ontology: str | Path | None = None,
    options: Options | None = None,
    model: str | Path | None = None,
    image_shape: Sequence[int] | None = None,
    device: str = "auto",
) -> Recipe:
    """Return the recipe that registers sections to an image of one's own.

    Args:
        reference: The image.
        labels: The image of its region ids.
        pixel_um: The size of its pixels; what the file says if None.
        ontology: The names of its regions.
        options: How sections are read, placed and refined.
        model: A model file, a folder or a checkpoint; None for the network that comes with the package.
        image_shape: The (H, W) that it takes; that of its training if None.
        device: auto takes a GPU if there is one.

    Raises:
        InputError: If a file cannot be read or does not fit the others.
    """
    trained = _Network.load(model, image_shape, device)
    opened = image_reference(
        read_image(reference),
        None if labels is None else checked_ids(read_labels(labels), str(labels)),
        trained.image_shape,
        pixel_um=pixel_um,
        name=str(reference),
    )
    names = None if ontology is None else read_ontology(ontology)
    origin = {
        "reference": Path(reference).name,
        "reference_sha256": fingerprint_of(opened.fingerprint(), None if names is None else list(names)),
    }
    return trained.recipe(lambda job, hemisphere: half_of(opened, hemisphere), names, options, origin)


class _Network(NamedTuple):
    """A network at its device, the (H, W) that it takes, and what tells it from others."""

    network: nn.Module
    image_shape: tuple[int, int]
    origin: Mapping[str, Any]

    @classmethod
    def load(cls, model: str | Path | None, image_shape: Sequence[int] | None, device: str) -> "_Network":
        """Return what is needed of a network, by the arguments of `atlas_recipe`."""
        path = SHIPPED_MODEL if model is None else Path(model)
        shape = image_shape or read_origin(path).image_shape
        if shape is None:
            raise InputError(
                f"{path} does not tell the size of its images: give an image shape (--image-shape HEIGHT WIDTH)"
            )
        shape = checked_shape("image shape", shape, bytes_a_pixel=OF_NETWORK)
        where = chosen_device(device)
        network = load_model(path).to(where).to(memory_format=fastest_memory_format(where))
        origin = {"model": path.name, "model_sha256": fingerprint(path), "image_shape": list(shape)}
        return cls(network, shape, origin)

    def recipe(
        self,
        reference: Callable[[Job, Side | None], Reference],
        ontology: Ontology | None,
        options: Options | None,
        origin: Mapping[str, Any],
    ) -> Recipe:
        """Return the recipe with this network."""
        return Recipe(
            network=self.network,
            image_shape=self.image_shape,
            reference=reference,
            ontology=ontology,
            options=options or Options(),
            origin={**self.origin, **origin},
        )


class AtlasReferences:
    """Returns the plane of an atlas that a section lies in.

    Args:
        atlas: At its own resolution.
        image_shape: The network's (H, W).
    """

    def __init__(self, atlas: Atlas, image_shape: tuple[int, int]) -> None:
        self.atlas = atlas
        self.image_shape = image_shape

    def nearby(
        self, job: Job, hemisphere: Side | None, distances_um: Iterable[float]
    ) -> dict[float, Reference]:
        """Return the planes at distances from that of a section, where they show tissue."""
        found = {}
        for distance_um in distances_um:
            with suppress(InputError):
                found[distance_um] = self._reference(job, hemisphere, distance_um)
        return found

    def __call__(self, job: Job, hemisphere: Side | None) -> Reference:
        """Return the reference of one section.

        Raises:
            InputError: If it has no position, or one outside of the atlas, or where that shows nothing.
        """
        if job.position_um is None:
            raise InputError(f"{job.path.name}: expected the position of the section in the atlas")
        self.atlas.plane_index(job.position_um)  # raises outside
        return self._reference(job, hemisphere)

    def _reference(self, job: Job, hemisphere: Side | None, distance_um: float = 0.0) -> Reference:
        assert job.position_um is not None
        if job.anchoring is None:
            plane = Plane.at(job.position_um, self.atlas.origin_um)
        else:
            plane = job.anchoring.plane(self.atlas.origin_um)
        return half_of(atlas_reference(self.atlas, plane.moved(distance_um), self.image_shape), hemisphere)


def half_of(reference: Reference, hemisphere: Side | None) -> Reference:
    """Return the half of a reference on this side; all of it if None."""
    return reference if hemisphere is None else reference.half(hemisphere)


# --- one section ------------------------------------------------------------------------------------------------------


class RegisteredSection(NamedTuple):
    """A section from its file to its registration.

    Attributes:
        image: What the file holds.
        section: The image as the network is to see it.
        reference: What it is registered to.
        placement: How it lies there before the network looks at it.
        registered: The map, both images, and how it went.
    """

    image: ImageFile
    section: Section
    reference: Reference
    placement: Placement
    registered: Registered


def register_section(job: Job, recipe: Recipe) -> RegisteredSection:
    """Read, place and register one section; nothing is written.

    Raises:
        InputError: If it cannot be read, placed or registered, and says why.
    """
    recipe = recipe.of(job)
    options = recipe.options
    image = read_image(job.path, channel=options.channel, page=options.page, z=options.z)
    reference = recipe.reference(job, options.hemisphere)
    section = read_section(image, recipe.image_shape, background=options.background, name=job.path.name)
    placement = _place(section, reference, job, options)
    is_free = options.turn is None and placement.placed_by in ("scale", "fit")
    likely = [
        (registered_likeness(recipe.network, reference, section, other), other)
        for other in _likely(section, reference, placement)
        if is_free or _is_apart(other, placement)
    ]
    if is_free and likely:
        _, placement = max(likely, key=lambda found: found[0])
    _check_registered_size(image, reference, placement, job.path.name)
    registered = register(
        recipe.network,
        reference,
        section,
        placement,
        refine=options.refine,
        refine_smoothness=options.refine_smoothness,
    )
    turns = [
        Alternative(f"turned by {_further(other, placement):.0f}°", like)
        for like, other in likely
        if _is_apart(other, placement)
    ]
    turns += _mirrored(section, reference, placement, recipe)
    quality = _compared(registered.quality, turns, lambda um: _planes(section, placement, job, recipe, um))
    registered = registered._replace(quality=quality)
    return RegisteredSection(image, section, reference, placement, registered)


def _compared(
    quality: Quality,
    turns: Sequence[Alternative],
    planes: Callable[[Sequence[float]], list[Alternative]],
) -> Quality:
    """Return the measures with the likeliest of other turns and planes; `planes` takes distances in µm."""
    near = planes(NEARBY_UM)
    compared = quality.compared(turns, near)
    if compared.better_elsewhere <= _DOUBT:
        return compared
    return quality.compared(turns, near + planes(FARTHER_UM))


def _check_registered_size(image: ImageFile, reference: Reference, placement: Placement, name: str) -> None:
    """Raise an error where the image, in its own pixels all over the reference, would be too large."""
    grid = reference.grid.finer(min(*placement.pixel_um, *reference.grid.pixel_um))
    check_size(f"{name}: the registered image", grid.shape, image.pixels[0, 0].nbytes)


def _place(section: Section, reference: Reference, job: Job, options: Options) -> Placement:
    return place(
        section,
        reference,
        by=options.place,
        anchoring=job.anchoring,
        pixel_size_um=options.pixel_size_um,
        mirrored=options.mirrored,
        turn=options.turn or 0.0,
    )


def _likely(section: Section, reference: Reference, placement: Placement) -> list[Placement]:
    """Return the placement at the two turns at which the section looks most like its reference."""
    likely = likely_turns(section, reference, placement)[:2]
    return [turned(placement, reference, turn.degrees) for turn in likely]


def _further(placement: Placement, than: Placement) -> float:
    """Return by how many degrees a placement is turned beyond another."""
    return (placement.turn - than.turn + 180) % 360 - 180


def _is_apart(placement: Placement, other: Placement) -> bool:
    return abs(_further(placement, other)) > _APART


def _mirrored(
    section: Section, reference: Reference, placement: Placement, recipe: Recipe
) -> list[Alternative]:
    """Return how like its reference half a section is when mirrored; of a whole brain both sides look alike."""
    if not isinstance(recipe.reference, AtlasReferences) or recipe.options.hemisphere is None:
        return []
    return [
        Alternative("mirrored", registered_likeness(recipe.network, reference, section, other))
        for other in _likely(section, reference, flipped(placement, reference))[:1]
    ]


def _planes(
    section: Section, placement: Placement, job: Job, recipe: Recipe, distances_um: Iterable[float]
) -> list[Alternative]:
    """Return how like planes of an atlas a section is, at distances from its own."""
    if not isinstance(recipe.reference, AtlasReferences):
        return []
    assert job.position_um is not None
    return [
        Alternative(
            f"{abs(distance_um):.0f} µm further {'back' if distance_um > 0 else 'to the front'}, at "
            f"{job.position_um + distance_um:.0f} µm",
            registered_likeness(recipe.network, plane, section, placement),
        )
        for distance_um, plane in recipe.reference.nearby(
            job, recipe.options.hemisphere, distances_um
        ).items()
    ]
