"""`python -m fastweights VERB ...`, for a source tree that is not installed."""

import sys

from fastweights.cli import main

sys.exit(main())
