"""Recording an answer over HTTP beside the bare app, and with a slower disk; the answer page, too."""

from __future__ import annotations

import secrets

from tests.bench import load
from tests.bench.bare import Bare, bare
from tests.bench.ground import SCORES, Ground, SlowDisk
from tests.bench.load import Load, get, post
from tests.bench.seed import Campaign
from tests.bench.table import Row

CONNECTIONS = (1, 8, 32)
SECONDS = 3.0
# More than any side answers in that time on one machine.
_MOST = 4_000


def record(campaign: Campaign, connections: int, seconds: float = SECONDS) -> Load:
    """Answers fresh invitations for so long."""
    forms = campaign.take(int(_MOST * seconds))
    done = load.run(campaign.running.settings.port, [form.request for form in forms], connections, seconds)
    campaign.book(forms, done.acknowledged, done.sent)
    return done


class _BareTokens:
    """Links of the bare app that were not used yet."""

    def __init__(self, app: Bare) -> None:
        self.app = app
        self.fresh: list[str] = []

    def record(self, connections: int, seconds: float = SECONDS) -> Load:
        count = int(_MOST * seconds)
        if len(self.fresh) < count:
            self.fresh += self.app.tokens(count - len(self.fresh))
        requests = [
            post(
                f"/a/{token}",
                f"pending={SCORES[n % len(SCORES)]}&comment=too+slow&nonce={secrets.token_urlsafe(16)}&seen=0"
                "&gesture=pointerdown&ms=2312&webdriver=0",
            )
            for n, token in enumerate(self.fresh[:count])
        ]
        done = load.run(self.app.port, requests, connections, seconds)
        self.fresh = self.fresh[done.sent :]
        return done


def beside_bare(ground: Ground, repeats: int) -> list[Row]:
    """Answers/s at each number of connections ÷ the bare app's, taken in turns."""
    with (
        ground.installation() as running,
        bare(ground.postgres.empty("survey"), running.settings.home) as app,
    ):
        running.web()
        campaign, plain = Campaign(running), _BareTokens(app)
        campaign.invite(int(_MOST * SECONDS) + 1)
        for side in (campaign, plain):  # warm
            record(side, 8, 1.0) if isinstance(side, Campaign) else side.record(8, 1.0)
        figures: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in CONNECTIONS}
        for _ in range(repeats):
            for connections, (ours, base) in figures.items():
                ours.append(record(campaign, connections).rate)
                base.append(plain.record(connections).rate)
        missing, doubled = campaign.counted()
    return [
        Row(
            f"recording an answer, {connections} connection{'s' * (connections > 1)}",
            "answers/s", ours, base, 0.75, missing=missing, doubled=doubled,
        )
        for connections, (ours, base) in figures.items()
    ]  # fmt: skip


def slow_disk(ground: Ground, repeats: int) -> list[Row]:
    """Answers/s with a millisecond added to each fsync ÷ without."""
    name = "recording an answer, 32 connections, 1 ms more per fsync"
    if not SlowDisk.possible():
        return [Row(name, "answers/s", [0.0], [1.0], note="there is no C compiler (cc) here: not measured")]
    disk = SlowDisk()
    try:
        with disk.installation() as running:
            running.web()
            campaign = Campaign(running)
            campaign.invite(int(_MOST * SECONDS) + 1)
            record(campaign, 8, 1.0)
            slow, fast = [], []
            for _ in range(repeats):
                with disk.slow():
                    slow.append(record(campaign, 32).rate)
                fast.append(record(campaign, 32).rate)
            missing, doubled = campaign.counted()
    finally:
        disk.close()
    return [Row(name, "answers/s", slow, fast, 0.5, missing=missing, doubled=doubled)]


def page(ground: Ground, repeats: int) -> list[Row]:
    """GETs of the answer page, each of a fresh link with its mail's score, ÷ a static page of Flask's."""
    with (
        ground.installation() as running,
        bare(ground.postgres.empty("survey"), running.settings.home) as app,
    ):
        running.web()
        campaign = Campaign(running)
        campaign.invite(3_000)
        pages = [get(f"/a/{form.token}?s={form.score}") for form in campaign.fresh] * 4
        static = [get("/page")] * 40_000
        ours, base = [], []
        load.run(running.settings.port, pages, 8, 1.0)
        for _ in range(repeats):
            ours.append(load.run(running.settings.port, pages, 8, SECONDS).rate)
            base.append(load.run(app.port, static, 8, SECONDS).rate)
    return [Row("answer page, 8 connections", "pages/s", ours, base, 0.5)]
