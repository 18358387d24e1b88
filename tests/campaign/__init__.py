"""A campaign against the command line: damaged inputs, kills, two runs at once, disks that refuse.

`python -m tests.campaign` runs a small form in a minute or two, with `--full` the full one, which takes about half an
hour and writes its counts to RESULTS.md. Everything is drawn from a seed.
"""
