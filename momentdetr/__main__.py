"""`python -m momentdetr`."""

import sys

from momentdetr.cli import main

if __name__ == "__main__":
    sys.exit(main())
