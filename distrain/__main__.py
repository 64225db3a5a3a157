"""`python -m distrain`: the same as the `distrain` command."""

from __future__ import annotations

import sys

from distrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
