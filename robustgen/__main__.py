"""``python -m robustgen``."""

import sys

from robustgen.cli import main

sys.exit(main())
