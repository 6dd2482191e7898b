"""`python -m molere` is the command `molere`."""

import sys

from molere.cli import main

if __name__ == "__main__":
    sys.exit(main())
