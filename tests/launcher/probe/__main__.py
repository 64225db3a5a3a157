"""The probe as a package with relative imports: `-m probe FOLDER [SECTION,…]` writes FOLDER/<rank>.json."""

INITIAL_NAMES = sorted(globals())

import sys

HAS_CALLER = sys._getframe().f_back is not None

from . import facts
from .things import Colour, Net, Thing, measure  # noqa: F401

if __name__ == "__main__":
    facts.write(sys.argv[1], facts.collect(globals(), sys.argv[2].split(",") if len(sys.argv) > 2 else None))
