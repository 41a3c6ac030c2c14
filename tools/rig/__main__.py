"""`python3 -m rig`, called by `tools/bench`."""

import sys

from .cli import main

sys.exit(main())
