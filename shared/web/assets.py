"""Static files: read once, compressed once, named after their content so that browsers keep them for good."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from flask import Blueprint, Response, request
from markupsafe import Markup

from shared.errors import NotFound
from shared.web.access import public

_OWN = Path(__file__).parent / "static"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_IMPORT = re.compile(r'(from\s+")\./([\w.-]+\.js)(")')


@dataclass(frozen=True, slots=True)
class Asset:
    """One file under its hashed name, plain and compressed."""

    name: str
    content_type: str
    body: bytes
    compressed: bytes


@cache
def assets() -> dict[str, Asset]:
    """All static files by their plain name; Bootstrap's stylesheet comes out of its wheel."""
    found = {"bootstrap.css": _asset("bootstrap.css", _wheel("css/bootstrap.min.css"))}
    # Modules that import none come first, so that an import can name the hash of what it imports.
    files = sorted(_OWN.iterdir(), key=lambda file: (bool(_IMPORT.search(_text(file))), file.name))
    for file in files:
        if file.suffix not in _TYPES:
            continue
        body = file.read_bytes()
        if file.suffix == ".js":
            linked = _IMPORT.sub(lambda m: f"{m[1]}./{found[m[2]].name}{m[3]}", body.decode())
            body = linked.encode()
        found[file.name] = _asset(file.name, body)
    return found


@cache
def _by_hashed_name() -> dict[str, Asset]:
    return {asset.name: asset for asset in assets().values()}


@cache
def icon(name: str) -> Markup:
    """One Bootstrap icon as inline SVG, hidden from screen readers: the words beside it say it."""
    sprite = _wheel("icons/bootstrap-icons.svg").decode()
    begin = sprite.find(f' id="{name}">')
    if begin < 0:
        raise KeyError(f"there is no icon {name}")
    drawing = sprite[sprite.index(">", begin) + 1 : sprite.index("</symbol>", begin)]
    return Markup(  # noqa: S704 - from the wheel's own file
        '<svg class="icon" viewBox="0 0 16 16" width="16" height="16" fill="currentColor" aria-hidden="true">'
        f"{drawing}</svg>"
    )


def blueprint(service_name: str) -> Blueprint:
    """Serves the files below `/NAME/static/`."""
    bp = Blueprint("static", __name__, url_prefix=f"/{service_name}/static")

    @bp.get("/<path:name>")
    @public
    def file(name: str) -> Response:
        asset = _by_hashed_name().get(name)
        if asset is None:
            raise NotFound("There is no such file.")
        squeeze = "gzip" in request.headers.get("Accept-Encoding", "")
        response = Response(asset.compressed if squeeze else asset.body, content_type=asset.content_type)
        if squeeze:
            response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response

    return bp


def _asset(name: str, body: bytes) -> Asset:
    stem, suffix = name.rsplit(".", 1)
    digest = hashlib.sha256(body).hexdigest()[:12]
    return Asset(f"{stem}.{digest}.{suffix}", _TYPES["." + suffix], body, gzip.compress(body, 9, mtime=0))


def _wheel(path: str) -> bytes:
    # Found, not imported: the package would load a forms library that nobody here uses.
    found = find_spec("flask_bootstrap")
    if found is None or not found.submodule_search_locations:
        raise LookupError("Bootstrap-Flask is not installed")
    return (Path(found.submodule_search_locations[0]) / "static/bootstrap5" / path).read_bytes()


def _text(file: Path) -> str:
    return file.read_text() if file.suffix == ".js" else ""
