"""`python -m attfc_cuda.cli`."""

import sys

from attfc_cuda.cli import main

if __name__ == "__main__":
    sys.exit(main())
