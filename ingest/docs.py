"""/docs: the OpenAPI document as a web page that loads nothing from other servers."""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.requests import Request
from starlette.responses import HTMLResponse

_FILES = "/docs/files"
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def install(app: FastAPI) -> list[str]:
    """Adds the page and its files. Returns the page's script sources for the Content-Security-Policy."""
    page = get_swagger_ui_html(
        openapi_url=str(app.openapi_url),
        title=app.title,
        swagger_js_url=f"{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{_FILES}/favicon.png",
    )

    async def show(_request: Request) -> HTMLResponse:
        return page

    assets: Any = files("fastapi_offline") / "static"
    app.add_route("/docs", show, include_in_schema=False)
    app.mount(_FILES, StaticFiles(directory=assets))
    scripts = _INLINE_SCRIPT.findall(bytes(page.body).decode())
    return ["'self'", *(f"'sha256-{_sha256(script)}'" for script in scripts)]


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
