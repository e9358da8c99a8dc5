"""`python -m tests.oracle`: see `tests.oracle.main`."""

import sys

from tests.oracle.main import main

sys.exit(main())
