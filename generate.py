"""Generate training data: `python generate.py --help` lists what can be set."""

from atlalign.cli.programs import generate

if __name__ == "__main__":
    generate()
