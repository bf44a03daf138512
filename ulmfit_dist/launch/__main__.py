"""Entry point of `python -m ulmfit_dist.launch`: `accelerate launch` with the exit code of its ranks."""

import sys

from ulmfit_dist.launch.launcher import main

sys.exit(main())
