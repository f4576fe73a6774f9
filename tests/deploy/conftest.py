"""The product in containers, brought up once; the tests of this folder go on from each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.compose import Asked, Compose, available


@pytest.fixture(scope="session")
def compose() -> Iterator[Compose]:
    """A project with its image built, and nothing started."""
    if not available():
        pytest.skip("needs a container engine with Compose")
    found = Compose()
    try:
        found.run("build", "--quiet")
        yield found
    finally:
        found.close()


@pytest.fixture(scope="session")
def asked(compose: Compose) -> Asked:
    """A program with a key, on everything that runs."""
    compose.up()
    return Asked.on(compose, compose.client())
