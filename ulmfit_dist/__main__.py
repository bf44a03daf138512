"""`python -m ulmfit_dist`, and so `accelerate launch -m ulmfit_dist`."""

import sys

from ulmfit_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
