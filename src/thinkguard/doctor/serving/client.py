"""A client for OpenAI-compatible servers: JSON and server-sent events, on the standard library alone.

Every failure is a ServerError with one sentence. Redirects are not followed: the API key would go with them.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from thinkguard import __version__
from thinkguard.errors import InputError, ThinkGuardError

_MOST_BYTES: Final = 16 << 20
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ENDPOINTS: Final = ("/chat/completions", "/completions", "/models", "/responses", "/messages")


class ServerError(ThinkGuardError, OSError):
    """A server that cannot be reached, or whose answer cannot be read."""


class RefusedError(ServerError):
    """A server that answered with an HTTP status of 400 or more."""

    def __init__(self, where: str, status: int, message: str) -> None:
        super().__init__(f"{where} answers HTTP {status}: {message}")
        self.status = status
        self.message = message


class SlowError(ServerError):
    """A server that did not answer in time."""


def base_urls(url: str) -> tuple[str, ...]:
    """Return where the API may begin, most likely first; InputError for a URL that cannot be used."""
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError as error:
        raise InputError(f"--url {url}: {error}; wanted http://HOST:PORT/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InputError(f"--url {url}: wanted http://HOST:PORT/v1 or https://HOST/v1")
    if parts.username is not None or parts.password is not None:
        raise InputError("--url holds a user name or password: pass the key with --api-key or OPENAI_API_KEY")
    if parts.query or parts.fragment:
        raise InputError(f"--url {url}: holds a query or a fragment; wanted http://HOST:PORT/v1")
    path = parts.path.rstrip("/")
    for endpoint in _ENDPOINTS:
        path = path.removesuffix(endpoint)
    root = f"{parts.scheme}://{parts.netloc}{path}"
    return (root,) if path.endswith("/v1") else (f"{root}/v1", root)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **_: Any) -> None:
        """Return no request, so that a redirect is not followed but arrives as an HTTP error."""


@dataclass(frozen=True, slots=True)
class Client:
    """One server. `timeout` is the seconds that a whole answer may take."""

    base: str
    api_key: str | None
    timeout: float

    def get(self, path: str) -> Any:
        """Return the JSON behind a path below the base."""
        return self._json(self.base + path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that the server answers a JSON body with."""
        return self._json(self.base + path, body)

    def at_root(self) -> Client:
        """The same server without `/v1`, where vLLM keeps what is not OpenAI's."""
        return Client(self.base.removesuffix("/v1"), self.api_key, self.timeout)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """Yield the data of every server-sent event; ends where the server ends."""
        where, deadline = self.base + path, time.monotonic() + self.timeout
        with _as_server_errors(where, self.timeout), self._open(where, body) as answer:
            kind = answer.headers.get_content_type()
            if kind != "text/event-stream":
                raise ServerError(f"{where} answers a request to stream with {kind}, wanted text/event-stream")
            for line in _lines(answer, where, deadline, self.timeout):
                name, _, value = line.partition(":")
                if name == "data":
                    yield value.removeprefix(" ")

    def _json(self, where: str, body: Mapping[str, Any] | None) -> Any:
        deadline = time.monotonic() + self.timeout
        with _as_server_errors(where, self.timeout), self._open(where, body) as answer:
            text = "\n".join(_lines(answer, where, deadline, self.timeout))
            kind = answer.headers.get_content_type()
        try:
            return json.loads(text)
        except ValueError:
            excerpt = " ".join(text.split())[:60]
            hint = "; is the URL that of a web page?" if "html" in kind or excerpt.startswith("<") else ""
            raise ServerError(f"{where} answers {kind} that is not JSON: {excerpt!r}{hint}") from None

    def _open(self, where: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Accept": "application/json", "User-Agent": f"thinkguard/{__version__}"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        handlers: list[Any] = [_NoRedirect]
        if urlsplit(where).hostname in _LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(where, data, headers)
        return urllib.request.build_opener(*handlers).open(request, timeout=self.timeout)


def _lines(answer: Any, where: str, deadline: float, timeout: float) -> Iterator[str]:
    """Yield an answer's lines, without line ends. SlowError after the deadline, ServerError beyond the largest size."""
    left = _MOST_BYTES
    while left > 0:
        if time.monotonic() > deadline:
            raise SlowError(f"{where} was not done within {timeout:g} s")
        line = answer.readline(left)
        if not line:
            return
        left -= len(line)
        yield line.decode("utf-8", "replace").rstrip("\r\n")
    raise ServerError(f"{where} answers with more than {_MOST_BYTES >> 20} MB")


@contextmanager
def _as_server_errors(where: str, timeout: float) -> Iterator[None]:
    """Turn what urllib raises into a ServerError that says where."""
    try:
        yield
    except ServerError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(where, error) from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise SlowError(f"{where} did not answer within {timeout:g} s") from None
        if isinstance(reason, ConnectionRefusedError):
            raise ServerError(f"nothing listens at {where}: connection refused") from None
        if isinstance(reason, (http.client.HTTPException, ConnectionError)):
            raise ServerError(f"{where} broke the connection off: {reason!r}") from None
        raise ServerError(f"{where} cannot be reached: {reason}") from None


def _refused(where: str, error: urllib.error.HTTPError) -> ServerError:
    if error.code < 400:
        target = error.headers.get("Location", "nowhere")
        return ServerError(f"{where} redirects to {target}: pass that server as --url")
    try:
        text = error.read(1 << 16).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    message = _message(text) or str(error.reason)
    if error.code in (401, 403):
        message += "; pass the server's key with --api-key or in OPENAI_API_KEY"
    return RefusedError(where, error.code, message)


def _message(text: str) -> str:
    """Return what an error's body says, in one line; FastAPI, OpenAI and vLLM each word it differently."""
    try:
        value = json.loads(text)
    except ValueError:
        value = "" if text.lstrip().startswith("<") else text
    for key in ("error", "message", "detail"):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
    return " ".join(str(value).split())[:400]
