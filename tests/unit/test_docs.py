"""The documents say what is so: their links lead somewhere, and no setting is missing."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from shared.db import Database
from shared.embedded.web import WORKERS
from shared.events.catalog import TOPICS
from shared.events.outbox import SHARDS
from shared.web.pressure import AT_WORK

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("services/*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", page.read_text())
    missing = [
        link
        for link in (one or other for one, other in links)
        if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists()
    ]
    assert missing == []


def test_every_setting_is_documented() -> None:
    readers = [ROOT / f"shared/{name}.py" for name in ("settings", "kafka_settings", "provider_settings")]
    text = "".join(reader.read_text() for reader in readers)
    read = set(re.findall(r'"((?:HEARBACK|SENDGRID|TWILIO|SMTP)_[A-Z_]+[A-Z])"', text))
    documented = (ROOT / "docs/operations.md").read_text()
    assert sorted(name for name in read if name not in documented) == []


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`((?:services|shared|tests)/[\w/.]+\.(?:py|html))`", text)
    assert named
    assert [name for name in named if "/X/" not in name and not (ROOT / name).exists()] == []


def test_the_page_on_scaling_counts_with_the_real_settings() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    [pool] = [field.default for field in fields(Database) if field.name == "pool_size"]
    assert isinstance(pool, int) and (WORKERS, AT_WORK) == (2, 4)
    assert f"| web | {WORKERS * pool}: two processes, a pool of {pool} each |" in text
    assert f"max_connections ≥ {WORKERS * pool} · webs + {pool} · (relays + consumers" in text
    assert f"**{max(topic.partitions for topic in TOPICS.values())} consumers**" in text
    assert f"**{SHARDS} relays**" in text
    alone = sorted(topic.name for topic in TOPICS.values() if topic.partitions == 1)
    assert alone == ["changes", "settings", "staff"] and "`settings`, `changes` and `staff` one" in text
