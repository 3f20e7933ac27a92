"""Real servers on loopback that artifacts are published to, and a connection that breaks.

The registry is Debian's `docker-registry`; the S3 server is moto's, which speaks the protocol and keeps everything in
memory. The stand-in for the Hub is in hub_server.py.
"""

import base64
import json
import logging
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

USER, PASSWORD = "writer", "right-password"
HASHED = "$2a$04$s.XzLUm1UYfU4Ny0f06om.GDGWniwszJS.hV4baDVWk4D5jhXdDr2"
"""`PASSWORD`, by bcrypt."""
INDEX = "application/vnd.oci.image.manifest.v1+json"

CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: 127.0.0.1:{port}}}
auth: {auth}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def log_in(folder: Path, host: str, password: str = PASSWORD) -> None:
    """What `docker login` would write into `folder`, which DOCKER_CONFIG is to name."""
    folder.mkdir(exist_ok=True)
    token = base64.b64encode(f"{USER}:{password}".encode()).decode()
    path = folder / "config.json"
    known = json.loads(path.read_text())["auths"] if path.exists() else {}
    path.write_text(json.dumps({"auths": {**known, host: {"auth": token}}}))


class Registry:
    """What a reader with plain HTTP sees of a registry."""

    def __init__(self, host: str) -> None:
        self.host = host

    def target(self, name: str, tag: str = "v1") -> str:
        return f"oci://{self.host}/models/{name}:{tag}"

    def manifest(self, name: str, tag: str = "v1") -> Any:
        """The manifest of a tag; None where there is none."""
        try:
            with urllib.request.urlopen(self._request(f"models/{name}/manifests/{tag}")) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            assert error.code == 404
            return None

    def put_manifest(self, name: str, manifest: dict[str, Any], tag: str = "v1") -> None:
        request = self._request(f"models/{name}/manifests/{tag}", "PUT", json.dumps(manifest).encode())
        request.add_header("Content-Type", INDEX)
        urllib.request.urlopen(request).close()

    def _request(self, path: str, method: str = "GET", data: bytes | None = None) -> urllib.request.Request:
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {"Accept": INDEX, "Authorization": f"Basic {token}"}
        return urllib.request.Request(f"http://{self.host}/v2/{path}", data, headers, method=method)


def limited(largest_file: int | None) -> list[str]:
    """Before a command: it can write no larger file, which it meets as it would meet a full disk."""
    return ["prlimit", f"--fsize={largest_file}"] if largest_file else []


@contextmanager
def registry(folder: Path, largest_file: int | None = None, auth: object = None) -> Iterator[Registry]:
    """A registry with one account; with `largest_file` its disk is full beyond files of that many bytes."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs a container registry: apt-get install docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    port, config, passwords = free_port(), folder / "config.yml", folder / "passwords"
    passwords.write_text(f"{USER}:{HASHED}\n")
    known = auth or {"htpasswd": {"realm": "test", "path": str(passwords)}}
    config.write_text(CONFIG.format(root=folder / "storage", port=port, auth=json.dumps(known)))

    command = [*limited(largest_file), program, "serve", str(config)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(port)
        yield Registry(f"127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@contextmanager
def token_registry(folder: Path, key: Any, certificate: Path) -> Iterator[tuple[Registry, list[str]]]:
    """A registry that lets in whoever has a token for just what is asked, as ghcr.io and Docker Hub do, and the scopes
    that tokens were given out for. `certificate` is of `key`, an elliptic curve's."""
    scopes: list[str] = []

    class Tokens(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            allowed = self.headers.get("Authorization") == f"Basic {login}"
            scopes.extend(asked.get("scope", []))
            token = _token(asked.get("scope", []), key, certificate) if allowed else ""
            body = json.dumps({"token": token}).encode()
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    realm = f"http://127.0.0.1:{server.server_port}/token"
    named = {"realm": realm, "service": "registry", "issuer": "issuer", "rootcertbundle": str(certificate)}
    try:
        with registry(folder, auth={"token": named}) as found:
            yield found, scopes
    finally:
        server.shutdown()
        server.server_close()


def _token(scopes: list[str], key: Any, certificate: Path) -> str:
    """A JSON web token for `scopes`, like `repository:name:pull,push` (RFC 7519, ES256)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    def encoded(value: bytes | dict[str, Any]) -> str:
        raw = json.dumps(value).encode() if isinstance(value, dict) else value
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
    parts = [scope.split(":") for scope in scopes]
    access = [{"type": kind, "name": name, "actions": actions.split(",")} for kind, name, actions in parts]
    now = int(time.time())
    times = {"iat": now, "nbf": now - 10, "exp": now + 300}
    body = {"iss": "issuer", "sub": USER, "aud": "registry", "jti": "1", "access": access, **times}
    signed = f"{encoded(head)}.{encoded(body)}"
    r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _wait_for(port: int) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens at port {port}")


class Store:
    """A bucket of an S3 server, as a reader with another client than ours sees it."""

    def __init__(self, url: str) -> None:
        import boto3

        self.url = url
        self._client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="not-secret"
        )
        self._client.create_bucket(Bucket="releases")

    def names(self, prefix: str) -> set[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket="releases", Prefix=f"{prefix}/")
        return {found["Key"].removeprefix(f"{prefix}/") for page in pages for found in page.get("Contents", [])}

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket="releases", Key=key, Body=content, Metadata={"ours": "yes"})

    def is_ours(self, key: str) -> bool:
        """Whether what `put` wrote was not written again."""
        return "ours" in self._client.head_object(Bucket="releases", Key=key)["Metadata"]

    def ask_for_accounts(self, asked: bool) -> None:
        """Whether requests by accounts that were never made are refused."""
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", b"0" if asked else b"1000000000")
        request.add_header("Content-Type", "text/plain")
        urllib.request.urlopen(request).close()


@contextmanager
def store() -> Iterator[Store]:
    """An S3 server with an empty bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Store(f"http://{host}:{port}")
    finally:
        server.stop()


@contextmanager
def breaking(port: int, after: int) -> Iterator[int]:
    """A port that passes connections on to `port`, until `after` bytes were sent over all of them; then it hangs up,
    and takes no more."""
    left = [after]
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if counted:
                    left[0] -= len(data)
                if left[0] < 0:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if left[0] < 0:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", port))
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
