"""`python -m vsock.cli`: as `python -m vsock`."""

import sys

from vsock.cli.entry import main

sys.exit(main())
