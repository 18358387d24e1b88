"""Generate training data: `python generate.py --help` lists all settings."""

from atlalign.cli.programs import generate

if __name__ == "__main__":
    generate()
