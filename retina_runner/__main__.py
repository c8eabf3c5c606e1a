"""`python -m retina_runner` is `retina-run`."""

import sys

from retina_runner.cli import main

if __name__ == "__main__":
    sys.exit(main())
