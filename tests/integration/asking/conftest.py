"""What these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.asking import Asking, asking
from tests.support.postgres import TestPostgres


@pytest.fixture(scope="package")
def one_survey(postgres: TestPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    with asking(postgres, tmp_path_factory.mktemp("asking")) as service:
        yield service


@pytest.fixture
def survey(one_survey: Asking) -> Asking:
    """Survey with a company and a program."""
    one_survey.reset()
    return one_survey
