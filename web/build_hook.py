"""Hatch's hook for the daemon's wheel: without the built page there is no wheel, instead of one without a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import (  # type: ignore[import-not-found, unused-ignore]
    BuildHookInterface,
)


class PageIsBuilt(BuildHookInterface):  # type: ignore[misc, type-arg, unused-ignore]
    """Stops a standard build when `web/static/index.html` is missing; an editable install may come before the page."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        page = Path(self.root) / "web" / "static" / "index.html"
        if version != "editable" and not page.is_file():
            raise FileNotFoundError(
                f"wheel: got no {page}, expected the built page; run `node web/page/build.mjs` first"
            )
