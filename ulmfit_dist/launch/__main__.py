"""`python -m ulmfit_dist.launch`, used in place of `accelerate launch`."""

import sys

from ulmfit_dist.launch.launcher import main

sys.exit(main())
