"""An option that several commands have means the same in each, and is described once."""

import argparse

import pytest

from atlalign.cli import locate, register, sections, transform

COMMANDS = {"register": register, "locate": locate, "sections": sections, "transform": transform}
# What is written, replaced or mapped differs from command to command.
OWN = {"--help", "--out", "--overwrite", "--output-um", "--labels"}


def flags(name: str) -> dict[str, argparse.Action]:
    commands = argparse.ArgumentParser().add_subparsers()
    COMMANDS[name].add(commands)
    return {
        action.option_strings[-1]: action
        for action in commands.choices[name]._actions
        if action.option_strings
    }


@pytest.mark.parametrize("other", ["locate", "sections", "transform"])
def test_a_shared_option_has_one_help_and_one_kind(other):
    one, two = flags("register"), flags(other)
    shared = (one.keys() & two.keys()) - OWN
    assert "--z" in shared
    for flag in shared:
        first, second = one[flag], two[flag]
        assert (first.help, first.type, first.metavar) == (second.help, second.type, second.metavar), flag


def test_locate_reads_images_and_atlases_as_register_does():
    shared = flags("register").keys() & flags("locate").keys()
    assert {"--atlas", "--annotation", "--spacing-um", "--axes"} <= shared
    assert {
        "--pixel-size-um",
        "--background",
        "--scene",
        "--channel",
        "--page",
        "--z",
        "--one-section",
    } <= shared
    assert {"--independent", "--section-spacing-um"} <= shared
