"""Registers single sections again, one at a time and in the background, with their corrections."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import NamedTuple

from atlalign.atlas.atlas import Atlas
from atlalign.errors import InputError, describe
from atlalign.registration.batch import register_batch
from atlalign.registration.jobs import Job
from atlalign.registration.recipe import Recipe
from atlalign.registration.references import AtlasReferences

_log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """How a section was registered.

    Attributes:
        job: The section.
        load: Returns the recipe; it takes seconds when it is first called.
    """

    job: Job
    load: Callable[[], Recipe]


class Registrar:
    """Registers sections as they were registered before.

    Args:
        out: The folder of results.
        sections: How, by name.
        why_not: Why sections that are missing there cannot be registered again.

    Attributes:
        states: Of sections that were to be registered again: waiting, at work, done, or an error.
    """

    def __init__(self, out: Path, sections: Mapping[str, Asked], why_not: str = "") -> None:
        self.out = out
        self.sections = sections
        self.why_not = why_not
        self.states: dict[str, str] = {}
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._lock = Lock()
        self._loaded: set[Callable[[], Recipe]] = set()
        Thread(target=self._work, daemon=True).start()
        Thread(target=self._prepare, daemon=True).start()

    def problem(self, name: str) -> str:
        """Return why a section cannot be registered again; empty if it can."""
        if name in self.sections:
            return self.sections[name].job.problem
        return self.why_not or f"{name}: it is none of the images that were registered"

    def image(self, name: str) -> Path | None:
        """Return the file of a section's image, if that is known."""
        return self.sections[name].job.path if name in self.sections else None

    def atlas(self, name: str, *, wait: bool = True) -> Atlas | None:
        """Return the atlas of a section; None if it lies in none, that cannot be read, or is not read yet.

        Args:
            name: Of the section.
            wait: Read it if that has not happened; otherwise somebody else may be at it.
        """
        if name not in self.sections or not (wait or self.sections[name].load in self._loaded):
            return None
        try:
            references = self.recipe(name).references
        except InputError as error:
            _log.warning("%s", error)
            return None
        return references.atlas if isinstance(references, AtlasReferences) else None

    def recipe(self, name: str) -> Recipe:
        """Return how a section is registered.

        Raises:
            InputError: If that is not known, or a file of it cannot be read.
        """
        if name not in self.sections:
            raise InputError(self.problem(name))
        load = self.sections[name].load
        with self._lock:
            recipe = load()
        self._loaded.add(load)
        return recipe

    def ask(self, name: str) -> None:
        """Let a section be registered again when its turn comes.

        Raises:
            InputError: If it cannot be.
        """
        if problem := self.problem(name):
            raise InputError(problem)
        if self.states.get(name) != "waiting":
            self.states[name] = "waiting"
            self._queue.put(name)

    def _prepare(self) -> None:
        """Read what takes seconds before somebody asks for it."""
        for name in self.sections:
            with suppress(InputError):
                self.recipe(name)

    def _work(self) -> None:
        while True:
            name = self._queue.get()
            self.states[name] = "at work"
            try:
                outcome = next(register_batch([self.sections[name].job], self.recipe(name), self.out))
                self.states[name] = outcome.error or "done"
            except InputError as error:
                self.states[name] = str(error)
            except Exception as error:
                _log.exception("%s", name)
                self.states[name] = describe(error)
