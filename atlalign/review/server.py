"""The server of the review page: on this machine only, for one folder, and only for requests with its token."""

import errno
import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from secrets import compare_digest, token_urlsafe
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from atlalign.errors import InputError, describe
from atlalign.io.files import WriteError, is_file
from atlalign.registration.corrections import Correction
from atlalign.review.brush import stroke_area
from atlalign.review.folder import (
    ConflictError,
    ReviewFolder,
    as_numbers,
    from_json,
    hemisphere_of,
    result_anchoring,
    to_json,
)
from atlalign.review.plane_settings import PlaneSettings
from atlalign.review.registrar import Registrar
from atlalign.review.scene import Scene
from atlalign.review.series import spread_plane

_LOCAL = {"127.0.0.1", "localhost", "[::1]"}
_LARGEST_BODY = 20 * 2**20
_SCENES_AT_MOST = 3  # cached, each with its image
_LARGEST_PICTURE_PX = 4096
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_STATIC = {
    "": ("review.html", "text/html; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
}

_log = logging.getLogger(__name__)


class Request(NamedTuple):
    """A valid request.

    Attributes:
        query: Its parameters.
        body: Its content, as plain data.
    """

    query: dict[str, str]
    body: Any

    def number(self, name: str) -> float:
        """Return a parameter that is a number.

        Raises:
            InputError: If it is not a number.
        """
        try:
            value = float(self.query[name])
        except (KeyError, ValueError) as error:
            raise InputError(f"{name}: expected a number, found {self.query.get(name, 'nothing')}") from error
        if not abs(value) < 1e7:
            raise InputError(f"{name}: expected a number below 10,000,000, found {value:g}")
        return value


class Answer(NamedTuple):
    """The answer to a request."""

    content: bytes
    kind: str
    status: int = 200


class Review:
    """Answers the requests of the page.

    Args:
        folder: The results.
        registrar: Registers sections again.
    """

    def __init__(self, folder: ReviewFolder, registrar: Registrar) -> None:
        self.folder = folder
        self.registrar = registrar
        self._scenes: OrderedDict[tuple[str, str], Scene] = OrderedDict()
        self._lock = Lock()
        self.routes: dict[tuple[str, str], Callable[[Request], Answer]] = {
            ("GET", "sections"): self._sections,
            ("GET", "section"): self._section,
            ("GET", "picture"): self._picture,
            ("PUT", "correction"): self._save,
            ("POST", "outlines"): lambda request: self._seen(
                request, Scene.outlines, "application/octet-stream"
            ),
            ("POST", "template"): lambda request: self._seen(request, Scene.template, "image/webp"),
            ("POST", "region"): self._region,
            ("POST", "plane"): self._plane,
            ("POST", "locate"): self._locate,
            ("POST", "stroke"): self._stroke,
            ("POST", "apply"): self._apply,
            ("POST", "spread"): self._spread,
        }

    def _sections(self, request: Request) -> Answer:
        states = self.registrar.states
        sections = [
            row | {"state": states.get(row["name"], ""), "why_not": self.registrar.problem(row["name"])}
            for row in self.folder.sections()
        ]
        return _json(
            {
                "folder": self.folder.out.name,
                "is_writable": self.folder.is_writable,
                "sections": sections,
            }
        )

    def _section(self, request: Request) -> Answer:
        name = request.query.get("name", "")
        scene, saved = self._scene(name), self.folder.load(name)
        former = result_anchoring(scene.record)
        height, width = scene.base.section.shape
        settings = None
        if former is not None:
            shown = saved.correction.anchoring if saved.correction.moves_plane else former
            settings = PlaneSettings.of(shown or former, former).to_json()
        return _json(
            {
                "name": name,
                "size": [height, width],
                "pixel_um": scene.base.section.pixel_um,
                "channels": len(scene.channels),
                "has_image": scene.image is not None and is_file(scene.image),
                "former": former.to_json() if former else None,
                "plane": settings,
                "hemisphere": hemisphere_of(scene.record),
                "correction": to_json(saved.correction, scene.base.section.shape),
                "revision": saved.revision,
                "record": scene.record.get("sha256", ""),
            }
        )

    def _picture(self, request: Request) -> Answer:
        scene = self._scene(request.query.get("name", ""))
        left, top, right, bottom = (request.number(edge) for edge in ("left", "top", "right", "bottom"))
        width, height = (int(request.number(side)) for side in ("width", "height"))
        own_height, own_width = scene.base.section.shape
        if not (0 <= left < right <= own_width and 0 <= top < bottom <= own_height):
            raise InputError(f"expected a part of an image of {own_height}×{own_width} px")
        if not (0 < width <= _LARGEST_PICTURE_PX and 0 < height <= _LARGEST_PICTURE_PX):
            raise InputError(f"expected a picture of at most {_LARGEST_PICTURE_PX} px a side")
        channel = int(request.query.get("channel", "0") or 0)
        return Answer(
            scene.picture(max(0, channel), (left, top, right, bottom), (width, height)), "image/jpeg"
        )

    def _save(self, request: Request) -> Answer:
        self._check_writable()
        name = request.query.get("name", "")
        height, width = self.folder.record(name)["section"]["shape"]
        correction = from_json(request.body, (height, width))
        return _json({"revision": self.folder.save(name, correction, request.query.get("revision", ""))})

    def _seen(self, request: Request, look: Callable[[Scene, Correction], bytes], kind: str) -> Answer:
        scene = self._scene(request.query.get("name", ""))
        return Answer(look(scene, from_json(request.body, scene.base.section.shape)), kind)

    def _region(self, request: Request) -> Answer:
        scene = self._scene(request.query.get("name", ""))
        correction = from_json(request.body, scene.base.section.shape)
        return _json({"region": scene.region(correction, request.number("x"), request.number("y"))})

    def _plane(self, request: Request) -> Answer:
        """Return the anchoring for settings; the image keeps its proportions and its centre in the plane."""
        scene = self._scene(request.query.get("name", ""))
        former = result_anchoring(scene.record)
        if former is None or scene.atlas() is None:
            raise InputError("the plane cannot be moved: the section's atlas is missing")
        body = request.body if isinstance(request.body, dict) else {}
        correction = from_json(body.get("correction"), scene.base.section.shape)
        shown = correction.anchoring if correction.moves_plane else None
        settings = PlaneSettings.from_json(body.get("plane"))
        return _json({"anchoring": settings.anchoring(former, shown).to_json()})

    def _locate(self, request: Request) -> Answer:
        """Return the plane of the section near the plane that is shown; nothing is saved."""
        name = request.query.get("name", "")
        scene = self._scene(name)
        former = result_anchoring(scene.record)
        correction = from_json(request.body, scene.base.section.shape)
        start = correction.anchoring if correction.moves_plane else former
        if former is None or start is None:
            raise InputError(
                f"{name}: expected a section registered to an atlas, found one registered to an image"
            )
        found = self.registrar.locate(name, replace(correction, anchoring=start, moves_plane=True))
        anchoring = scene.before_network(found.anchoring)
        return _json(
            {
                "anchoring": anchoring.to_json(),
                "plane": PlaneSettings.of(anchoring, former).to_json(),
                "is_moved": found.likeness > found.likeness_before,
                "likeness": found.likeness,
                "likeness_before": found.likeness_before,
            }
        )

    def _stroke(self, request: Request) -> Answer:
        """Return the area of a brush stroke."""
        radius = request.number("radius")
        if not radius > 0:
            raise InputError(f"radius: expected more than 0, got {radius:g}")
        stroke = as_numbers(request.body, "stroke", 2, least=1)
        return _json({"area": [ring.tolist() for ring in stroke_area(stroke, radius)]})

    def _apply(self, request: Request) -> Answer:
        self._check_writable()
        self.folder.path(request.query.get("name", ""))
        self.registrar.ask(request.query["name"])
        return _json({})

    def _spread(self, request: Request) -> Answer:
        """Interpolate planes between this section and the next ones set by hand, or copy its shift to neighbours."""
        self._check_writable()
        changed = spread_plane(
            self.folder, request.query.get("name", ""), int(request.query.get("copies", "0") or 0)
        )
        return _json({"changed": changed})

    def _check_writable(self) -> None:
        if not self.folder.is_writable:
            raise WriteError(f"{self.folder.out} is read-only: nothing can be changed", errno.EROFS)

    def _scene(self, name: str) -> Scene:
        """Return a section's view, cached until its results change."""
        record = self.folder.record(name)
        key = name, str(record.get("sha256"))
        with self._lock:
            if key not in self._scenes:
                image = self.registrar.image(name)
                by_network = record.get("settings", {}).get("model") not in (None, "none")
                atlas = partial(self.registrar.atlas, name)
                self._scenes[key] = Scene(self.folder.path(name), record, image, atlas, by_network=by_network)
            self._scenes.move_to_end(key)
            while len(self._scenes) > _SCENES_AT_MOST:
                self._scenes.popitem(last=False)
            return self._scenes[key]


def _json(content: Any) -> Answer:
    return Answer(json.dumps(content, ensure_ascii=False).encode(), "application/json")


def review_server(review: Review, port: int = 0) -> ThreadingHTTPServer:
    """Return a server on the loopback interface; its page is at `page_address`.

    Args:
        review: Answers the requests.
        port: The port; 0 for a free one.

    Raises:
        InputError: If the port is taken.
    """
    token = token_urlsafe(24)
    handler = type("ReviewHandler", (_Handler,), {"review": review, "token": token})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port}: {describe(error)}: choose another port") from error
    server.daemon_threads = True
    return server


def page_address(server: ThreadingHTTPServer) -> str:
    """Return the address of the page, with its token."""
    handler: Any = server.RequestHandlerClass
    return f"http://127.0.0.1:{server.server_port}/{handler.token}/"


class _Handler(BaseHTTPRequestHandler):
    review: Review
    token: str
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "atlalign", ""
    timeout = 60  # of an idle connection

    def do_GET(self) -> None:
        self._answer()

    do_PUT = do_POST = do_GET  # noqa: N815

    def _answer(self) -> None:
        try:
            answer = self._found()
        except ConflictError as error:
            answer = _refused(str(error), 409)
        except WriteError as error:
            answer = _refused(str(error), 403)
        except InputError as error:
            answer = _refused(str(error), 422)
        except Exception as error:
            _log.exception("%s", urlsplit(self.path).path.rpartition("/")[2])
            answer = _refused(f"unexpected: {describe(error)}", 500)
        try:
            self.send_response(answer.status)
            for name, value in {**_HEADERS, "Content-Type": answer.kind}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _found(self) -> Answer:
        address = urlsplit(self.path)
        body = self._body()
        if not self._is_local():
            return _refused("expected a page of this server", 403)
        _, token, *rest = (address.path + "/").split("/", 2)
        if not compare_digest(token.encode(errors="replace"), self.token.encode()):
            return _refused("expected the address printed by `atlalign review`", 403)
        place = rest[0].rstrip("/") if rest else ""
        if self.command == "GET" and place in _STATIC:
            name, kind = _STATIC[place]
            return Answer(files("atlalign.review").joinpath("static", name).read_bytes(), kind)
        route = self.review.routes.get((self.command, place))
        if route is None:
            return _refused("no such page", 404)
        if body is None:
            return _refused("the request is too large", 413)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        try:
            content = json.loads(body) if body else None
        except (ValueError, RecursionError) as error:
            raise InputError("expected JSON") from error
        return route(Request(query, content))

    def _body(self) -> bytes | None:
        """Return the content of the request; None if it is too large."""
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= _LARGEST_BODY:
            self.close_connection = True
            return None
        return self.rfile.read(length)

    def _is_local(self) -> bool:
        """Return whether the request came from this machine, and from a page of this server."""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] or host
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        return name in _LOCAL and origin in (None, f"http://{host}") and site in ("none", "same-origin")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: a line for each request is of no use to the user."""


def _refused(reason: str, status: int) -> Answer:
    return _json({"error": reason})._replace(status=status)
