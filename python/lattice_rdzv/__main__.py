"""`python -m lattice_rdzv`: the command `lattice-rdzv`, for where the console script is not on the path."""

import sys

from lattice_rdzv.cli import main

sys.exit(main())
