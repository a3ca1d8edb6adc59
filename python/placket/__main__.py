from __future__ import annotations

import sys

from placket.cli import main

sys.exit(main())
