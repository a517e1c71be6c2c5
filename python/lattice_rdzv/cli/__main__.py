"""`python -m lattice_rdzv.cli` runs the command if the console script is not on the path."""

import sys

from . import main

sys.exit(main())
