"""Sentences that explain the errors of Hydra and OmegaConf about a user's settings."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

# The packages that provide Hydra's optional launchers.
_LAUNCHERS = {
    "hydra/launcher/joblib": "atlalign-torch[cluster]",
    "hydra/launcher/submitit_local": "atlalign-torch[cluster]",
    "hydra/launcher/submitit_slurm": "atlalign-torch[cluster]",
    "hydra/launcher/ray": "hydra-ray-launcher",
}


def conf_folder() -> Path:
    """Return the folder of configuration: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def near(name: str, known: Collection[str], *, at_most: int = 3) -> str:
    """Return a question that suggests names similar to `name`, with a leading space; empty if no name is similar."""
    close = get_close_matches(name, list(known), n=at_most)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence about a `name` that is not in `known`, with near matches and all known names."""
    names = sorted(known)
    return f"unknown {kind} '{name}'.{near(name, names)} There are: {', '.join(names) or 'none'}"


def hydra_sentence(causes: Sequence[BaseException]) -> str | None:
    """Return one sentence for an error's chain of causes if Hydra or OmegaConf raised one of them; None otherwise."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    for cause in causes:
        if (found := _sentence(cause)) is not None:
            return found
    parts = [str(c).strip() for c in causes if isinstance(c, HydraException | OmegaConfBaseException)]
    return "\n".join(dict.fromkeys(filter(None, parts))) or None


def _sentence(error: BaseException) -> str | None:
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException):
        return _missing_option(str(error.missing_cfg_file), error.options)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: expected KEY=VALUE or GROUP=OPTION"
    if str(error).startswith("Config group override must be a string or a list"):
        return (
            "expected the name of an option for each group, such as augment=none or logger=none, got null or a number; "
            "--help lists the options, and callbacks.NAME=null switches one callback off"
        )
    if isinstance(error, ConfigCompositionException):
        return _composition(str(error))
    if isinstance(error, OmegaConfBaseException) and isinstance(error.parent_node, DictConfig):
        known = [str(key) for key in error.parent_node if not str(key).startswith("_")]
        if error.key is not None and str(error.key) not in known:
            return _unknown_key(str(error.full_key or error.key), known)
    return None


def _missing_option(path: str, options: Sequence[str] | None) -> str | None:
    group, _, name = path.rpartition("/")
    if path in _LAUNCHERS:
        return f"{group}={name} is not installed: pip install '{_LAUNCHERS[path]}'"
    return None if options is None else f"{group}={name}: {unknown('option', name, options)}"


def _composition(message: str) -> str | None:
    """Return the sentence about a group that the program does not have, or about a key that cannot be added."""
    if found := re.search(r"Could not override '([^']+)'\.(?: No match|\nDid you mean)", message):
        return f"{found[1]}: this program has no such group; --help lists its groups"
    if found := re.match(r"\s*Could not append to config\. An item is already at '([^']+)'", message):
        return f"{found[1]}: this key exists: set it without the +"
    return None


def _unknown_key(full_key: str, known: Sequence[str]) -> str:
    """Return the sentence about a key that does not exist, with the options of its group that have this key."""
    group, _, key = full_key.rpartition(".")
    having = [f"{group}={name}" for name in _options_with(group, key)]
    hint = f"; it is a key of {' and '.join(having)}: add {' or '.join(having)}" if having else ""
    where = f"{full_key}: " if group else ""
    return f"{where}{unknown('key', key, known)}{hint}"


def _options_with(group: str, key: str) -> Iterator[str]:
    import yaml

    for path in sorted((conf_folder() / group).glob("*.yaml")) if group.isidentifier() else ():
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if key in content or key in (content.get(group) or {}):
            yield path.stem
