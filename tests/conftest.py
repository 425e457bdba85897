"""What all tests share: both event loops, no network, seeds that can be read off a failure."""

from __future__ import annotations

import pytest
import pytest_socket


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every test of asynchronous code runs on both event loops."""
    backend: str = request.param
    return backend


def pytest_runtest_setup() -> None:
    """Nothing here needs a network; event loops need their socket pairs."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)
