"""Makes links work in the repository and on the site: pages and pictures outside docs/ join the site under their own paths.

On the site docs/ is the root. So `../clients/x.png` in a page of docs/ becomes `clients/x.png`, and `docs/cli.md` in
CONTRIBUTING.md becomes `cli.md`. A link to a file that is not on the site loses its target and keeps its text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
JOINED = ("CONTRIBUTING.md", "CHANGELOG.md", "proto/README.md", "clients/experiments/report/*", "server/web/screenshots/*.png")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds what is outside docs/."""
    for pattern in JOINED:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrites the page's relative links."""
    source = page.file.src_uri
    in_docs = page.file.src_dir != str(ROOT)

    def rewritten(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match[0]
        if in_docs and path.startswith("../"):
            path = path.removeprefix("../")
        elif not in_docs and "/" not in source:
            path = path.removeprefix("docs/")
        else:
            return match[0]
        return f"{picture}[{text}]({path}{mark}{anchor})" if files.get_file_from_path(path) else text

    return LINK.sub(rewritten, markdown)
