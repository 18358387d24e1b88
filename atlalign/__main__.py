"""`python -m atlalign` runs the command line `atlalign`."""

import sys

from atlalign.cli import main

sys.exit(main())
