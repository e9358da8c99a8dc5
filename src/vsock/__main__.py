"""`python -m vsock`: the `vsock` command for when it is not on PATH."""

import sys

from vsock.cli.entry import main

sys.exit(main())
