"""One verified download: HTTPS only, size capped, checksum before the file gets its name."""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

from utils.atomic import writing
from utils.errors import UserError

CHUNK_BYTES = 1 << 20
MAX_BYTES = 1 << 30
TIMEOUT_S = 60.0
LOOPBACK = ("127.0.0.1", "::1")


def fetch(url: str, path: Path, sha256: str, *, max_bytes: int = MAX_BYTES, insecure_loopback: bool = False) -> str:
    """Download `url` to `path` and return its SHA-256.

    Parameters
    ----------
    url : https address; plain http is taken only on a loopback address and with `insecure_loopback` (for tests).
    path : target; it appears whole and verified, or not at all.
    sha256 : expected, 64 hex digits or a published prefix of them.
    max_bytes : more than this is refused, whatever the server announces.

    Raises
    ------
    UserError : wrong scheme (also after a redirect), no connection, too large, truncated, wrong checksum.
    """
    _check_scheme(url, insecure_loopback)
    opener = urllib.request.build_opener(_Redirects(insecure_loopback))
    digest = hashlib.sha256()
    with writing(path) as tmp, open(tmp, "xb") as file:
        try:
            with opener.open(url, timeout=TIMEOUT_S) as response:
                announced = int(response.headers.get("Content-Length") or -1)
                received = _copy(response, file, digest, url, max(announced, 0), max_bytes)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            raise UserError(f"cannot download {url}: {error}; check the connection, or fetch it by hand") from error
        if announced >= 0 and received != announced:
            raise UserError(f"{url}: truncated, {received} of {announced} bytes; try again")
        if not digest.hexdigest().startswith(sha256.lower()):
            raise UserError(f"{url}: SHA-256 is {digest.hexdigest()}, expected {sha256}; the file was not kept")
    return digest.hexdigest()


def _copy(
    source: http.client.HTTPResponse, target: IO[bytes], digest: "hashlib._Hash", url: str, announced: int, limit: int
) -> int:
    received = 0
    if announced > limit:
        raise UserError(f"{url}: announces {announced} bytes, more than the {limit} expected; refused")
    while chunk := source.read(CHUNK_BYTES):
        received += len(chunk)
        if received > limit:
            raise UserError(f"{url}: more than the {limit} bytes expected; refused")
        digest.update(chunk)
        target.write(chunk)
    return received


def _check_scheme(url: str, insecure_loopback: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (insecure_loopback and parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise UserError(f"{url}: only https addresses are downloaded")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to an address that would have been accepted in the first place."""

    def __init__(self, insecure_loopback: bool) -> None:
        self.insecure_loopback = insecure_loopback

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl, self.insecure_loopback)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
