"""The parts of the reference that are made from the code: each public function returns Markdown.

A page asks for a part by a line `<!-- made: NAME ARGUMENT -->`.
"""

import argparse
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from inspect import cleandoc, getdoc
from itertools import zip_longest
from pathlib import Path
from typing import Any

import conf_files
import griffe

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
_DIFFERENCES = ("experiment", "sweep")
_NO_DEFAULT = (None, False, argparse.SUPPRESS)
_SAID_DEFAULT = re.compile(r" \(default: ([^()]*)\)")


# --- the command line -------------------------------------------------------------------------------------------------


def command_line() -> str:
    """Return every command of `atlalign` with its arguments and options, as its parser declares them."""
    from atlalign.cli import _parser
    from atlalign.cli.programs import PROGRAMS

    (commands,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    parts = [_command(name, parser) for name, parser in commands.choices.items() if name not in PROGRAMS]
    parts += [_program(name, str(program.__doc__)) for name, program in PROGRAMS.items()]
    return "\n\n".join(parts)


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    os.environ["COLUMNS"] = "100"  # of the usage
    usage = parser.format_usage().removeprefix("usage: ")
    groups = [table for group in parser._action_groups if (table := _options(parser, group))]
    return "\n\n".join(
        [f"## atlalign {name}", _prose(str(parser.description)), f"```text\n{usage}```", *groups]
    )


def _options(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> str:
    actions = [a for a in group._group_actions if not isinstance(a, argparse._HelpAction)]
    if not actions:
        return ""
    title = {"positional arguments": "Arguments", "options": "Options"}.get(
        str(group.title), f"Options: {group.title}"
    )
    expand = parser._get_formatter()._expand_help
    rows = [(_written(action), *_default_and_meaning(action, expand(action))) for action in actions]
    kind = "option" if actions[0].option_strings else "argument"
    return f"**{title}**\n\n" + table((kind, "default", "meaning"), rows)


def _written(action: argparse.Action) -> str:
    """Return how an argument is written on the command line."""
    names = action.metavar if isinstance(action.metavar, tuple) else [action.metavar]
    value = " ".join(str(name) for name in names if name)
    if action.choices:
        value = "|".join(map(str, action.choices))
    elif not value and action.nargs != 0 and action.option_strings:
        value = action.dest.upper()
    more = "…" if action.nargs in ("+", "*") else ""
    return f"`{' '.join(filter(None, [*action.option_strings[:1], value]))}{more}`"


def _default_and_meaning(action: argparse.Action, text: str) -> tuple[str, str]:
    """Return the default of an argument and its help without the default."""
    if action.required or not action.option_strings:
        return "required", _prose(text)
    value = "" if action.default in _NO_DEFAULT or action.default == [] else str(action.default)
    said = _SAID_DEFAULT.search(text)
    if said is None:
        return value and f"`{value}`", _prose(text)
    return _value_as_code(said[1], value), _prose(_SAID_DEFAULT.sub("", text))


def _value_as_code(said: str, value: str) -> str:
    """Return a default as help states it, with the value (or a single word) as code."""
    word = value if value and said.startswith(value) else said
    return f"`{word}`{said[len(word) :]}" if " " not in word else said


def _program(name: str, purpose: str) -> str:
    return (
        f"## atlalign {name}\n\n{purpose} Takes `KEY=VALUE` and `GROUP=OPTION` instead of options: see "
        f"[configuration](configuration.md). In a checkout, `python {name}.py` is the same."
    )


# --- the configuration ------------------------------------------------------------------------------------------------


def configuration(program: str) -> str:
    """Return the keys of a program (train, generate or evaluate) outside of the groups."""
    path = CONF / f"{program}.yaml"
    chosen = [
        f"`{choice}`"
        for choice in conf_files.read(path).begins
        if "=" in choice and not choice.startswith("hydra/") and not choice.endswith("=None")
    ]
    return f"Groups by default: {' '.join(chosen)}.\n\n{_keys(path)}"


def groups() -> str:
    """Return every option of every group of `conf/`, with its keys."""
    folders = [path for path in sorted(CONF.iterdir()) if path.is_dir()]
    parts = [_group(folder.name, folder) for folder in folders if folder.name != "hydra"]
    return "\n\n".join([*parts, _group("hydra/sweeper", CONF / "hydra" / "sweeper")])


def _group(name: str, folder: Path) -> str:
    return "\n\n".join([f"### {name}", *(_option(name, path) for path in sorted(folder.glob("*.yaml")))])


def _option(group: str, path: Path) -> str:
    read = conf_files.read(path)
    target = f" It builds `{read.target}`." if read.target else ""
    if group in _DIFFERENCES:
        return f"#### {group}={path.stem}\n\n{_shown(read.purpose)}\n\n```yaml\n{_without_top(path)}\n```"
    begins = f" It begins with {', '.join(f'`{name}`' for name in read.begins)}." if read.begins else ""
    return f"#### {group}={path.stem}\n\n{_shown(read.purpose)}{begins}{target}\n\n{_keys(path, group)}"


def _without_top(path: Path) -> str:
    """Return a file without the comment at its top."""
    return re.sub(r"\A(#.*\n)+", "", path.read_text(encoding="utf-8")).strip()


def _keys(path: Path, group: str = "") -> str:
    """Return the keys of a file as the command line names them, without mappings that say no more than a key."""
    is_global = "# @package _global_" in path.read_text(encoding="utf-8")
    prefix = "" if is_global or not group else f"{group.replace('/', '.')}."
    keys = conf_files.read(path).keys
    rows = [
        (f"`{prefix}{key.name}`", f"`{key.default}`" if key.default else "", _shown(key.meaning))
        for key, after in zip_longest(keys, keys[1:])
        if key.default or after is None or after.meaning != key.meaning
    ]
    return table(("key", "default", "meaning"), rows) if rows else ""


# --- losses -----------------------------------------------------------------------------------------------------------


_NETS = {"alex": "AlexNet", "vgg": "VGG16"}
_WEIGHTS = {"net-lin": "calibrated weights", "net": "equal weights"}


def losses(term: str) -> str:
    """Return the keys and formulas of a table of losses: image, dvf or regularity."""
    from atlalign import losses as rooms

    registry = getattr(rooms, f"ALL_{term.upper()}_LOSSES")
    images = set(rooms.ALL_IMAGE_LOSSES) - {"mae", "mse"}
    rows = [
        (f"`{key}`", _shown(_formula(key, registry)))
        for key in registry
        if term != "dvf" or key not in images
    ]
    return table(("key", "value"), rows)


def _formula(key: str, registry: Any) -> str:
    from atlalign.losses import PerceptualLoss

    if key.startswith("perceptual_loss_"):
        weights, net = key.removeprefix("perceptual_loss_").split("_")
        return f"{first_sentence(PerceptualLoss)} {_NETS[net]}, {_WEIGHTS[weights]}."
    return _said(registry[key])


def _said(loss: Any) -> str:
    """Return the formula of a loss as its docstring states it, with the values of its parameters."""
    from atlalign.losses import combine, dvf, image, regularity

    match loss:
        case combine.FunctionLoss():
            return _said(loss.function)
        case combine.Mixer():
            parts = zip(loss.weights, loss.losses, strict=True)
            return " + ".join(f"{weight:g} · `{part.extra_repr()}`" for weight, part in parts)
        case regularity.OfEachField():
            return f"{_said(loss.loss)} The mean over the field and its inverse."
        case image.NCC():
            return f"{first_sentence(image.ncc)} Here `window` is {loss.window}."
        case dvf.VDClipper():
            return f"{first_sentence(dvf.vdclip)} Here {loss.extra_repr()}."
        case dvf.Grad():
            return first_sentence(dvf.grad)
    return first_sentence(loss)


def first_sentence(documented: Any) -> str:
    """Return the first sentence of a docstring without its "Return"."""
    return " ".join(str(getdoc(documented)).split("\n\n")[0].split()).removeprefix("Return ")


# --- quality ----------------------------------------------------------------------------------------------------------


ADVICE = {
    "displacement_max_um": "A wrong plane, or a piece far from its place → check the plane; paint the piece",
    "folding": "Points that contradict each other, or torn tissue → move or delete points; paint the damage",
    "inverse_consistency_um": "A wrong plane, damage, an unusual stain → check the plane and the outlines",
    "similarity_loss": "A wrong plane, or a stain unlike the template → check the plane and the outlines",
    "bending_um": "A wrong plane, or a missing part → check the plane; choose the half; paint the damage",
    "rescaling": "A wrong pixel size → `--pixel-size-um`",
    "rotation_deg": "A wrong turn → `--turn`, or none, so that it is estimated",
    "uncovered": "Half a section, a missing part, a dark stain → `--hemisphere`; paint the damage; other limits",
    "gap": "A tear or a hole → paint it: outlines beside a tear are wrong by its width",
    "beyond": "Dirt, a second section, a wrong half or pixel size → crop the image; `--hemisphere`, `--pixel-size-um`",
    "better_turned": "Upside down, another turn, a mirrored half → `--turn`, `--mirrored`",
    "better_elsewhere": "A wrong position → “locate from here” in the review, or register without the position",
    "plane_offset_um": "A wrong position → “locate from here” in the review, or register without the position",
}
"""For each measure: why it usually exceeds its limit, and what to do then."""


def measures() -> str:
    """Return the measures that flag a section, with their limits, their meanings and what to do."""
    from atlalign.registration.quality import LIMITS, Quality

    fields = parameters(Quality)
    derived = {
        name: first_sentence(found) for name, found in vars(Quality).items() if isinstance(found, property)
    }
    rows = [
        (
            f"`{name}`",
            f"{limit.look:g}",
            f"{limit.fail:g}",
            _prose((fields | derived)[name]),
            _prose(ADVICE[name]),
        )
        for name, limit in LIMITS.items()
    ]
    return table(("measure", "look above", "fail above", "meaning", "usual cause → what to do"), rows)


def options() -> str:
    """Return the options of a registration, each with the columns of lists that set it for one section."""
    from atlalign.declarations import declarations
    from atlalign.registration import Options

    rows = [
        (
            f"`{declared.name}`",
            f"`{declared.default!r}`",
            _prose(_help(declared)),
            "yes" * declared.option.is_column,
        )
        for declared in declarations(Options)
    ]
    return table(("option", "default", "meaning", "column of lists"), rows)


def _help(declared: Any) -> str:
    """Return the help of an option; a default that its column shows is not said again."""
    text = str(declared.option.help).replace("%(default)s", str(declared.default))
    return text.replace(f" (default: {declared.default})", "")


def quality_columns() -> str:
    """Return all that is measured of a registration."""
    from atlalign.registration.quality import DERIVED, Quality

    meanings = parameters(Quality) | {name: first_sentence(getattr(Quality, name)) for name in DERIVED}
    return table(("column", "meaning"), [(f"`{name}`", _prose(text)) for name, text in meanings.items()])


# --- the Python API ---------------------------------------------------------------------------------------------------


def python(module: str) -> str:
    """Return the public names of a module, to be filled from their docstrings by mkdocstrings."""
    room = import_module(module)
    names = [name for name in getattr(room, "__all__", ()) if not name.startswith("__")]
    return "\n\n".join(f"::: {module}.{name}{_values(name, getattr(room, name))}" for name in names)


def _values(name: str, found: Any) -> str:
    """Return the values of a named tuple in their order, with their defaults; nothing for others."""
    if not (isinstance(found, type) and issubclass(found, tuple)):
        return ""
    defaults: dict[str, Any] = getattr(found, "_field_defaults", {})
    fields: tuple[str, ...] = getattr(found, "_fields", ())
    written = ", ".join(f"{key}={defaults[key]!r}" if key in defaults else key for key in fields)
    return f"\n\n`{name}({written})`"


# --- text -------------------------------------------------------------------------------------------------------------


@cache
def parameters(documented: Any) -> dict[str, str]:
    """Return the meanings of parameters and attributes by name, from the docstrings of a class or function."""
    found: dict[str, str] = {}
    classes = [kind for kind in reversed(getattr(documented, "__mro__", ())) if kind is not object]
    for owner in (*classes, getattr(documented, "__init__", None), documented):
        text = cleandoc(getattr(owner, "__doc__", None) or "")
        for section in griffe.Docstring(text).parse("google", warnings=False):
            if section.kind.value in ("parameters", "attributes"):
                found |= {entry.name.lstrip("*"): entry.description for entry in section.value}
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(_lines(header, rows))


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _line(header)
    yield _line(["---"] * len(header))
    yield from map(_line, rows)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """Return a cell on one line; in code a bar divides no cells."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in parts)


def _prose(text: str) -> str:
    """Return text that begins with a capital and ends with a full stop."""
    text = _shown(text)
    return text[:1].upper() + text[1:] if text else ""


def _shown(text: str) -> str:
    """Return text that ends with a full stop, and whose angle brackets and stars are no markup."""
    text = " ".join(text.split()).replace("<", "&lt;")
    text = re.sub(r"(?<![\w`*])\*(?=\w)", r"\\*", text)
    return text + ("" if not text or text[-1] in ".:;!?" else ".")
