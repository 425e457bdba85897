"""TLS on loopback: who is not known is refused before a byte of a request is sent, and https stays https."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from serving import Recorder, running
from starlette.responses import RedirectResponse, Response

from fabstir_vectordb.errors import S5Error
from fabstir_vectordb.portal.app import create_app
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.storage import open_store, wire

HELLO = BlobId.of(b"hello")

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Self-signed certificates by the address for which they are, each with its key."""
    folder, made = tmp_path_factory.mktemp("tls"), {}
    for name, subject in (("here", "IP:127.0.0.1"), ("elsewhere", "DNS:portal.example")):
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", "/CN=test", "-addext", f"subjectAltName={subject}", "-keyout", key, "-out", certificate]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip("openssl cannot make a certificate")
        made[name] = (certificate, key)
    return made


@pytest.fixture
def trusting(
    certificates: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Trusts both certificates, as a system does whose administrator installed them."""
    bundle = tmp_path / "trusted.pem"
    bundle.write_bytes(b"".join(certificate.read_bytes() for certificate, _ in certificates.values()))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    wire._certificates.cache_clear()
    yield
    wire._certificates.cache_clear()


async def test_a_self_signed_certificate_is_refused_before_a_request_is_sent(
    certificates: dict[str, tuple[Path, Path]],
) -> None:
    asked = Recorder(lambda request: Response(b"hello"))
    with running(asked, certificates["here"]) as address:
        async with aclosing(open_store(f"portal+{address}", token="secret", max_retries=0)) as store:
            for call in (lambda: store.get(HELLO.hash, 5), lambda: store.put(b"hello")):
                with pytest.raises(S5Error, match="certificate verify failed"):
                    await call()
    assert not asked.asked


@pytest.mark.usefixtures("trusting")
async def test_a_trusted_certificate_of_another_name_is_refused(certificates: dict[str, tuple[Path, Path]]) -> None:
    asked = Recorder(lambda request: Response(b"hello"))
    with running(asked, certificates["elsewhere"]) as address:
        async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
            with pytest.raises(S5Error, match="IP address mismatch"):
                await store.get(HELLO.hash, 5)
    assert not asked.asked


@pytest.mark.usefixtures("trusting")
async def test_a_trusted_portal_serves_over_tls(certificates: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    with running(create_app(tmp_path), certificates["here"]) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            assert await store.put(b"hello") == HELLO
            assert await store.get(HELLO.hash, 5) == b"hello"


@pytest.mark.usefixtures("trusting")
async def test_https_is_never_redirected_to_http(certificates: dict[str, tuple[Path, Path]]) -> None:
    plain = Recorder(lambda request: Response(b"hello"))
    with running(plain) as readable:
        secure = Recorder(lambda request: RedirectResponse(f"{readable}/there", 307))
        with running(secure, certificates["here"]) as address:
            async with aclosing(open_store(f"portal+{address}", private_redirects=True)) as store:
                with pytest.raises(S5Error, match="from https to http") as caught:
                    await store.get(HELLO.hash, 5)
    assert not caught.value.retryable
    assert caught.value.details["redirected_to"] == readable.removeprefix("http://")
    assert secure.asked and not plain.asked


@pytest.mark.usefixtures("trusting")
async def test_http_may_be_redirected_to_https(certificates: dict[str, tuple[Path, Path]]) -> None:
    with running(Recorder(lambda request: Response(b"hello")), certificates["here"]) as secure:
        portal = Recorder(lambda request: RedirectResponse(f"{secure}/there", 307))
        with running(portal) as address:
            async with aclosing(open_store(f"portal+{address}")) as store:
                assert await store.get(HELLO.hash, 5) == b"hello"
