"""`python -m vsock.cli`: the `vsock` command for when it is not on PATH."""

import sys

from vsock.cli.main import main

sys.exit(main())
