"""The threads of a program share the machine's cores with other programs."""

import os


def share_cores() -> None:
    """Let waiting threads sleep instead of spinning, unless the user has set OMP_WAIT_POLICY; call before torch loads.

    Training that runs alone then becomes slightly slower; beside other programs on two cores, it is about ten times as
    fast.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
