"""``python -m promptlora`` is the command ``promptlora``; torchrun starts it so."""

import sys

from promptlora.cli import main

if __name__ == "__main__":
    sys.exit(main())
