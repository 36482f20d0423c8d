"""`python -m pipeline.local`."""

import sys

from pipeline.local.command import main

if __name__ == "__main__":
    sys.exit(main())
