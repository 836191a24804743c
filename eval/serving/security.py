"""What every request passes through: Host, Origin and token are checked, and the response gets its headers."""

import asyncio
import hmac
import ipaddress
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

EXPLAIN = "/explain/"  # before the name of a page, which is a secret itself
OPEN, OPEN_FOLDERS = ("/", "/health"), ("/web/", EXPLAIN)  # need no token: a new tab can send none
SEND_TIMEOUT = 60.0  # seconds; a client that reads nothing of its response for this long is disconnected
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response to a request that fails, as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": error}, status, headers)


class Guard:
    """ASGI middleware. A web page elsewhere cannot drive the server: a browser sends that page's Origin, and, after DNS
    rebinding, that page's Host. Host may be an IP address, localhost, or this machine's name or address."""

    def __init__(self, app: ASGIApp, host: str, token: str | None) -> None:
        """`host`: what the server listens on. `token`: what clients send as `Authorization: Bearer TOKEN`, if any."""
        self.app, self.token = app, token
        self.names = {"localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        self.responses: Counter[int] = Counter()  # by status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.responses[message["status"]] += 1
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if scope["path"].startswith(EXPLAIN):
                    del headers["content-security-policy"]  # the page has its own
            async with asyncio.timeout(SEND_TIMEOUT):
                await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        with ExitStack() as scope["exit_stack"], suppress(TimeoutError):  # uvicorn closes the connection
            await (refusal or self.app)(scope, receive, send_on)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        """The response to a request that may not pass; None for one that may."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            return error_response(403, f"Host {host!a} is not this server: open it as localhost or by its address")
        if origin is not None and origin.partition("://")[2] != host:
            return error_response(403, f"Origin {origin!a} is another site: only the server's own page may ask it")
        if self.token and path not in OPEN and not path.startswith(OPEN_FOLDERS):
            given, wanted = headers.get("authorization", ""), f"Bearer {self.token}"
            if not hmac.compare_digest(given.encode("latin-1"), wanted.encode()):
                message = "send the server's --token as the API key (Authorization: Bearer TOKEN)"
                return error_response(401, message, {"www-authenticate": "Bearer"})
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False
