"""Survey's permits and the mailbox as followup's sender meets them over HTTP, strict about what they get."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared.clock import Clock
from shared.settings import Settings
from shared.web import service_auth

TRAIL = "http://127.0.0.1:8080/a/abcdefghijklmnopqrstuv"
_REQUEST = {"id", "kind", "ref_id", "customer_id", "response_id", "prefer_channel", "claim"}
_MESSAGE = {
    "delivery_id", "channel", "to", "text", "to_name", "subject", "html", "headers", "sender_name",
    "sender_email", "reply_to",
}  # fmt: skip


class SurveyStandIn:
    """Grants permits as survey does: one customer at a time, again for what is still open, never for what
    was handed over or has become uncertain.

    `down`: nobody answers (503). `lose_answers`: so many grants are given whose answer gets lost.
    `mailbox`: the status that the provider answers with; `messages` are those it took.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings, self.clock = settings, clock
        self.down = False
        self.lose_answers = 0
        self.mailbox = 202
        self.retry_after: str | None = None
        self.refuse: dict[str, str] = {}
        self.channel: dict[str, str] = {}
        self.language: dict[str, str] = {}
        self.permits: dict[str, str] = {}
        self.claims: dict[str, str] = {}
        self.messages: list[dict[str, Any]] = []
        self.settled: list[dict[str, Any]] = []
        self.problems: list[str] = []

    def answer(self, path: str, headers: Any, body: dict[str, Any]) -> tuple[int, Any]:
        """The reply to a POST: (status, JSON); raises `ConnectionError` to hang up."""
        if path == "/mailbox/api/send":
            return self._send(headers, body)
        if self.down:
            return 503, {}
        if service_auth.check(self.settings, self.clock, headers.get("Authorization", "")) != "permits":
            self.problems.append("no service header")
            return 401, {}
        if path == "/survey/internal/permits":
            return self._permit(body["requests"])
        if path == "/survey/internal/permits/settle":
            for result in body["results"]:
                self._settle(result)
            return 200, {}
        return 404, {}

    def _permit(self, requests: list[dict[str, Any]]) -> tuple[int, Any]:
        granted, refused = [], []
        for request in requests:
            if set(request) != _REQUEST or request["kind"] != "notice":
                self.problems.append(f"a permit cannot be asked for with {sorted(request)}")
            customer, state = request["customer_id"], self.permits.get(request["id"])
            if state not in (None, "claimed", "failed"):
                refused.append({"id": request["id"], "reason": "settled"})
            elif customer in self.refuse:
                refused.append({"id": request["id"], "reason": self.refuse[customer]})
            else:
                self.permits[request["id"]] = "claimed"
                self.claims[request["id"]] = request["claim"]
                channel = self.channel.get(customer) or request["prefer_channel"]
                granted.append(
                    {
                        "id": request["id"],
                        "customer_id": customer,
                        "channel": channel,
                        "to": "carla@customer.example" if channel == "email" else "+4915112345678",
                        "name": "Carla <Customer>",
                        "language": self.language.get(customer, "en"),
                        "expires_in": 15,
                        "links": {
                            "trail": TRAIL,
                            "preferences": "http://127.0.0.1:8080/u/preferences",
                            "unsubscribe": "http://127.0.0.1:8080/u/unsubscribe",
                        },
                    }
                )
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionError
        return 200, {"granted": granted, "refused": refused}

    def _settle(self, result: dict[str, Any]) -> None:
        self.settled.append(result)
        new = {"handed": "handed", "failed": "failed", "uncertain": "uncertain", "returned": "failed"}
        claim = result["claim"] or self.claims.get(result["id"])
        late = result["result"] in ("failed", "returned") and claim != self.claims.get(result["id"])
        if self.permits.get(result["id"]) in ("claimed", "uncertain") and not late:
            self.permits[result["id"]] = new[result["result"]]

    def _send(self, headers: Any, body: dict[str, Any]) -> tuple[int, Any]:
        if headers.get("Authorization") != f"Bearer {self.settings.key('mailbox-send').hex()}":
            self.problems.append("the mailbox was not shown its key")
        if set(body) != _MESSAGE:
            self.problems.append(f"not a message: {sorted(body)}")
        if self.permits.get(body["delivery_id"]) != "claimed":
            self.problems.append(f"handed over without a permit: {self.permits.get(body['delivery_id'])}")
        if self.mailbox == 202:
            self.messages.append(body)
            return 202, {"id": f"m{len(self.messages)}"}
        if self.mailbox == 0:  # taken, and then silence
            self.messages.append(body)
            raise ConnectionError
        return self.mailbox, {}


@contextmanager
def survey_stand_in(settings: Settings, clock: Clock) -> Iterator[tuple[SurveyStandIn, Settings]]:
    """A running stand-in, and the settings that lead to it."""
    stand_in = SurveyStandIn(settings, clock)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, reply = stand_in.answer(self.path, self.headers, body)
            except ConnectionError:
                self.close_connection = True
                return
            raw = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if stand_in.retry_after:
                self.send_header("Retry-After", stand_in.retry_after)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stand_in, replace(settings, survey_url=url, mailbox_url=url)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not stand_in.problems, stand_in.problems
