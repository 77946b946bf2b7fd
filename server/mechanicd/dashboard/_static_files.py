"""The built page: `static/`, which the build makes from `server/web`."""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

STATIC: Final = Path(__file__).parent / "static"

_NOT_BUILT: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>mechanicd: the page is not built</title>
<body>
<h1>The page is not built</h1>
<p>This mechanicd was installed from its sources without Node, so the page's files are missing. The server works; only this page
does not.</p>
<ol>
<li>Install Node 20.19 or newer, with npm.</li>
<li>Install again from the sources: <code>pip install --force-reinstall --no-deps -e .</code></li>
<li>Start <code>mechanicd serve</code> again.</li>
</ol>
<p>Meanwhile: <code>mechanicd runs list</code>, <code>show</code> and <code>watch</code>,
or <a href="/api/v1/runs">the runs as JSON</a>.</p>
"""


def routes() -> list[BaseRoute]:
    """The routes of `/` and of the files that it loads."""

    async def page(_: Request) -> Response:
        index = STATIC / "index.html"
        if not index.is_file():
            return HTMLResponse(_NOT_BUILT, 503)
        return FileResponse(index, headers={"Cache-Control": "no-cache"})

    return [Route("/", page), Mount("/assets", _Assets(directory=STATIC / "assets", check_dir=False))]


class _Assets(StaticFiles):
    """Files whose names contain a hash of their content."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response
