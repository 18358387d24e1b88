"""`python -m atlalign` is `atlalign`."""

import sys

from atlalign.cli import main

sys.exit(main())
