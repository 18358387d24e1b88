"""Registers and locates single sections again with their corrections, in the background."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, NamedTuple

import numpy as np

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import Anchoring
from atlalign.errors import InputError, describe
from atlalign.localization import Nearby, NearbySearch
from atlalign.registration.batch import register_batch
from atlalign.registration.corrections import Correction, corrected
from atlalign.registration.jobs import Job
from atlalign.registration.recipe import Recipe
from atlalign.registration.record import read_record
from atlalign.registration.references import AtlasReferences

_log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """The original registration of a section.

    Attributes:
        job: The section.
        load: Returns the recipe; the first call takes seconds.
    """

    job: Job
    load: Callable[[], Recipe]


@dataclass(frozen=True, eq=False)
class Calls:
    """The original registrations of the sections of a folder.

    Attributes:
        sections: The registrations by section name.
        why_not: Why sections that are missing from `sections` cannot be registered again.
    """

    sections: Mapping[str, Asked] = field(default_factory=dict)
    why_not: str = ""


class Registrar:
    """Repeats the registrations of sections, and searches for their planes.

    Args:
        out: The folder of results.
        read_calls: Returns the original registrations; the same object unless `atlalign register` has run in the
            meantime.

    Attributes:
        states: The states of requested registrations: waiting, at work, done, or an error.
    """

    def __init__(self, out: Path, read_calls: Callable[[], Calls]) -> None:
        self.out = out
        self.states: dict[str, str] = {}
        self._read_calls = read_calls
        self._known = Calls()
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._loading, self._searching = Lock(), Lock()
        self._loaded: set[Callable[[], Recipe]] = set()
        self._searches: dict[Callable[[], Recipe], NearbySearch] = {}
        Thread(target=self._work, daemon=True).start()

    @property
    def calls(self) -> Calls:
        """The original registrations, including the latest calls."""
        found = self._read_calls()
        if found is not self._known:
            self._known = found
            # Not a daemon: Python would end it inside torch's code at exit, which aborts the process.
            Thread(target=self._prepare, args=(found,)).start()
        return found

    def problem(self, name: str) -> str:
        """Return the reason why a section cannot be registered again; empty if it can."""
        calls = self.calls
        if name in calls.sections:
            return calls.sections[name].job.problem
        return calls.why_not or f"{name}: expected a section that was registered before"

    def image(self, name: str) -> Path | None:
        """Return the file of a section's image, if known."""
        asked = self.calls.sections.get(name)
        return None if asked is None else asked.job.path

    def atlas(self, name: str, *, wait: bool = True) -> Atlas | None:
        """Return the atlas of a section; None if it has none, or the atlas cannot be read or is not loaded yet.

        Args:
            name: The section's name.
            wait: Load the atlas if necessary; otherwise another thread may be loading it.
        """
        asked = self.calls.sections.get(name)
        if asked is None or not (wait or asked.load in self._loaded):
            return None
        try:
            references = self.recipe(name).references
        except InputError as error:
            _log.warning("%s", error)
            return None
        return references.atlas if isinstance(references, AtlasReferences) else None

    def recipe(self, name: str) -> Recipe:
        """Return the recipe of a section.

        Raises:
            InputError: If the recipe is unknown, or one of its files cannot be read.
        """
        asked = self.calls.sections.get(name)
        if asked is None:
            raise InputError(self.problem(name))
        return self._recipe(asked)

    def _recipe(self, asked: Asked) -> Recipe:
        with self._loading:
            recipe = asked.load()
        self._loaded.add(asked.load)
        return recipe

    def ask(self, name: str) -> None:
        """Request a new registration of a section, which waits for its turn.

        Raises:
            InputError: If the section cannot be registered again.
        """
        if problem := self.problem(name):
            raise InputError(problem)
        if self.states.get(name) != "waiting":
            self.states[name] = "waiting"
            self._queue.put(name)

    def locate(self, name: str, correction: Correction) -> Nearby:
        """Search for a section's plane near the plane of a correction, and return it; nothing is written.

        Raises:
            InputError: If it cannot be located.
        """
        recipe, atlas = self.recipe(name), self.atlas(name)
        if atlas is None:
            raise InputError(
                f"{name}: expected a section registered to an atlas, found one registered to an image"
            )
        job, load = corrected(self._job(name), correction), self.calls.sections[name].load
        with self._searching:
            if load not in self._searches:
                self._searches[load] = NearbySearch(atlas)
            return self._searches[load].near(job, recipe.of(job).options)

    def _job(self, name: str) -> Job:
        """Return the section, with its located plane if its list has none."""
        return _with_place(self.calls.sections[name].job, read_record(self.out / name))

    def _prepare(self, calls: Calls) -> None:
        """Load slow objects before they are needed."""
        for asked in calls.sections.values():
            with suppress(InputError):
                self._recipe(asked)

    def _work(self) -> None:
        while True:
            name = self._queue.get()
            self.states[name] = "at work"
            try:
                outcome = next(register_batch([self._job(name)], self.recipe(name), self.out))
                self.states[name] = outcome.error or "done"
            except InputError as error:
                self.states[name] = str(error)
            except Exception as error:
                _log.exception("%s", name)
                self.states[name] = describe(error)


def _with_place(job: Job, record: Mapping[str, Any]) -> Job:
    """Return a job; if it has no position, it gets the located position that its results were made with."""
    settings = record.get("settings", {})
    if job.position_um is not None or settings.get("position_um") is None:
        return job
    anchoring = None
    if settings.get("anchoring") is not None:
        height, width = record["section"]["shape"]
        anchoring = Anchoring(np.array(settings["anchoring"], np.float64).reshape(3, 3), (height, width))
    half = {"hemisphere": settings.get("hemisphere")}
    return job._replace(
        position_um=settings["position_um"], anchoring=anchoring, options={**half, **job.options}
    )
