"""What the stub says of itself."""

from __future__ import annotations

import platform

VERSION = "0.1.0"
CLIENT = f"agent_stub/{VERSION} python/{platform.python_version()}"
