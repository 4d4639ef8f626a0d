"""The README for package indexes, which resolve no relative links: hatchling calls this when it builds the metadata."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)\s]+)\)")


class Readme(MetadataHookInterface):
    """README.md with absolute links into the tag of this version: pictures as raw files, pages as GitHub shows them."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the long description."""
        source, tag = metadata["urls"]["Source"], f"v{metadata['version']}"

        def absolute(link: re.Match[str]) -> str:
            mark, text, target = link.groups()
            return f"{mark}{text}({source}/{'raw' if mark else 'blob'}/{tag}/{target})"

        text = _LINK.sub(absolute, Path(self.root, "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
