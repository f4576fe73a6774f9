"""Mutants prove that the checker can fail: one promise broken each, and the experiment that sees it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import click

ROOT = Path(__file__).resolve().parents[2]
_CRASHES = "tests/faults/test_crashes.py::"
_ORDER = "tests/faults/test_log_order.py::"
_REORDERED = (
    "tests/faults/test_reordered.py"
    "::test_fault_17_twice_late_and_in_any_order_between_topics_events_end_as_they_would_in_order"
)
_FORGOTTEN = f"{_REORDERED}[when_the_inbox_has_forgotten-seed1]"
_NOTED = f"{_REORDERED}[through_the_inbox-seed1]"


@dataclass(frozen=True)
class Mutant:
    """`before` stands exactly once in `file` and becomes `after`; each of `experiments` must turn red."""

    name: str
    file: str
    before: str
    after: str
    experiments: tuple[str, ...]


MUTANTS = (
    Mutant(
        "inbox insert removed",
        "shared/events/consumer.py",
        "        fresh = inbox.insert(tx, self.group, [item.event for item in items])\n",
        "        fresh = {item.event.id for item in items}\n",
        (
            f"{_CRASHES}test_consumer_dies[embedded-seed1-fault_07_after_its_commit_before_the_offset-followup]",
            "tests/contract/test_effects.py"
            "::test_a_consumer_that_dies_between_its_commit_and_the_offset_has_one_effect[embedded]",
        ),
    ),
    Mutant(
        "what the inbox says is not heeded",
        "shared/events/consumer.py",
        "        fresh = inbox.insert(tx, self.group, [item.event for item in items])\n",
        """\
        inbox.insert(tx, self.group, [item.event for item in items])
        fresh = {item.event.id for item in items}
""",
        (
            _NOTED,
            "tests/faults/test_reordered.py"
            "::test_fault_07_what_waits_behind_a_parked_event_waits_once_though_its_consumer_died"
            "[embedded-seed1]",
            "tests/contract/test_effects.py"
            "::test_a_consumer_that_dies_between_its_commit_and_the_offset_has_one_effect[embedded]",
        ),
    ),
    Mutant(
        "offset advanced before the commit",
        "shared/events/consumer.py",
        '            self._process(entries)\n            crash_at("consumer.after_commit")\n'
        "            self.source.commit()\n",
        "            self.source.commit()\n            self._process(entries)\n"
        '            crash_at("consumer.after_commit")\n',
        (f"{_CRASHES}test_consumer_dies[embedded-seed1-fault_08_before_its_commit-followup]",),
    ),
    Mutant(
        "relay deletes before the flush",
        "shared/events/relay.py",
        '            crash_at("relay.before_send")\n',
        """\
            with self.db.transaction() as early:
                early.execute("DELETE FROM outbox WHERE id = ANY(%s)", ([row["id"] for row in rows],))
            crash_at("relay.before_send")
""",
        (f"{_CRASHES}test_fault_03_a_relay_dies_amid_a_batch[embedded-seed1-survey]",),
    ),
    Mutant(
        "relay drops what is no answer",
        "shared/events/relay.py",
        "                refusals = self.sink.send([_record(row) for row in rows], who)\n",
        """\
                left = [_record(row) for row in rows if row["topic"] in ("responses", "customers")]
                self.sink.send(left, who)
                refusals = [None] * len(rows)
""",
        (f"{_CRASHES}test_relay_dies[embedded-seed1-survey-fault_02_after_the_log_confirmed]",),
    ),
    Mutant(
        "followup's relay sends a batch backwards",
        "shared/events/relay.py",
        "                refusals = self.sink.send([_record(row) for row in rows], who)\n",
        """\
                rows = sorted(rows, key=lambda row: row["id"], reverse=self.name == "followup")
                refusals = self.sink.send([_record(row) for row in rows], who)
""",
        (f"{_CRASHES}test_relay_dies[embedded-seed1-followup-fault_02_after_the_log_confirmed]",),
    ),
    Mutant(
        "a late commit is overtaken by its key's next",
        "shared/events/relay.py",
        "            SELECT * FROM batch UNION ALL SELECT * FROM late ORDER BY id",
        "            SELECT * FROM batch ORDER BY id",
        (f"{_ORDER}test_fault_05_a_later_event_of_its_key_does_not_overtake_a_late_commit[embedded-seed1]",),
    ),
    Mutant(
        "the log takes what an overtaken relay sends",
        "shared/log/postgres_sink.py",
        "DO UPDATE SET epoch = excluded.epoch WHERE p.epoch <= excluded.epoch",
        "DO UPDATE SET epoch = excluded.epoch",
        (
            f"{_ORDER}test_fault_04_a_relay_that_froze_with_an_old_state_in_its_hands_never_beats_what_came_since"
            "[embedded-seed1-before_the_log_checks]",
        ),
    ),
    Mutant(
        "a poll reads what a long reader keeps",
        "shared/events/relay.py",
        "outbox.key >= k.key AND (outbox.key, id) <= (k.key, %(floor)s::bigint) OFFSET 0) o",
        "outbox.key = k.key AND id <= %(floor)s::bigint) o",
        (f"{_ORDER}test_fault_06_a_poll_costs_the_same_while_a_long_reader_keeps_all_dead_events[20000]",),
    ),
    Mutant(
        "outbox written after the reply",
        "services/survey/commands/answers.py",
        "    facts.publish(tx, [facts.response_event(saved)])\n"
        "    return _outcome(effect, saved, replace(wanted",
        """\
    from flask import after_this_request
    from shared.web import service

    db, event = service().db, facts.response_event(saved)

    def publish() -> None:
        with db.transaction() as later:
            facts.publish(later, [event])

    @after_this_request
    def leave(response):
        response.call_on_close(publish)
        return response

    return _outcome(effect, saved, replace(wanted""",
        (f"{_CRASHES}test_fault_01_web_dies_after_its_commit_before_the_reply[embedded-seed1]",),
    ),
    Mutant(
        "version not compared (customers in followup)",
        "services/followup/commands/replicas.py",
        "           WHERE customer.version < excluded.version",
        "           WHERE true",
        (_FORGOTTEN,),
    ),
    Mutant(
        "version not compared (answers in followup)",
        "services/followup/commands/replicas.py",
        '    if before and before["version"] >= version:\n        return None\n    # While',
        "    # While",
        (_FORGOTTEN,),
    ),
    Mutant(
        "version not compared (facts in reporting)",
        "services/reporting/store/facts.py",
        "WHERE {fact.table}.version < excluded.version",
        "WHERE true",
        (_FORGOTTEN,),
    ),
    Mutant(
        "version not compared (tasks in survey)",
        "services/survey/handlers.py",
        '" WHERE task_replica.version < EXCLUDED.version RETURNING id",',
        '" RETURNING id",',
        (_FORGOTTEN,),
    ),
    Mutant(
        "survey does not listen to tasks",
        "services/survey/handlers.py",
        '    tasks(tx, [event for event in events if event.topic == "tasks"])\n',
        "",
        (
            f"{_CRASHES}test_consumer_dies[embedded-seed1-fault_07_after_its_commit_before_the_offset-survey]",
            _NOTED,
        ),
    ),
    Mutant(
        "erased ids not kept (followup)",
        "services/followup/handlers.py",
        """\
    tx.execute(
        "INSERT INTO erased (customer_id, at) VALUES (%s, %s) ON CONFLICT DO NOTHING", (customer_id, tx.now)
    )
""",
        "",
        (_NOTED,),
    ),
    Mutant(
        "erased ids not kept (reporting)",
        "services/reporting/store/answers.py",
        """\
    tx.execute(
        "INSERT INTO erased (customer_id, at) SELECT unnest(%s::uuid[]), %s ON CONFLICT DO NOTHING",
        (ids, tx.now),
    )
""",
        "",
        (_NOTED,),
    ),
    Mutant(
        "erased ids not kept (survey)",
        "services/survey/commands/erase.py",
        """\
    tx.execute(
        "INSERT INTO erased (customer_id, at, version) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (customer_id, tx.now, version),
    )
""",
        "",
        (_NOTED,),
    ),
    Mutant(
        "permit not settled",
        "shared/channels/ledger.py",
        '" permit_expires_at = NULL, handed_at = coalesce(d.handed_at, %s),"',
        '" handed_at = coalesce(d.handed_at, %s),"',
        (
            "tests/faults/test_permits.py"
            "::test_nothing_is_handed_over_after_an_opt_out_that_did_not_say_so[seed1]",
        ),
    ),
    Mutant(
        "replay without the key's lock",
        "shared/events/parking.py",
        "                if not lock(tx, consumer, {(topic, key)}):\n",
        """\
                found = "SELECT 1 FROM parked_key WHERE (consumer, topic, key) = (%s, %s, %s)"
                if not tx.one(found, (consumer, topic, key)):
""",
        (
            "tests/faults/test_poison.py"
            "::test_fault_16_what_comes_while_a_replay_applies_a_keys_last_event_waits_for_it[embedded-seed1]",
        ),
    ),
)


@dataclass(frozen=True)
class Result:
    """What a run of experiments said: of each its complaint, empty when it is green."""

    complaints: dict[str, str]
    errors: list[str]
    seconds: float


class Copy:
    """The source tree once more, in a folder of its own; the environment and `build` are shared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.chmod(0o755)  # the embedded parts may run as somebody else
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        if (ROOT / "build").exists():
            (folder / "build").symlink_to(ROOT / "build")

    @contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """Within, the copy is the mutant. Raises when the text to replace is not there exactly once."""
        path = self.folder / mutant.file
        found = path.read_text()
        if (count := found.count(mutant.before)) != 1:
            raise click.ClickException(
                f"{mutant.name}: what it replaces stands {count} times in {mutant.file}; write it anew."
            )
        path.write_text(found.replace(mutant.before, mutant.after))
        try:
            yield
        finally:
            path.write_text(found)

    def run(self, experiments: Sequence[str]) -> Result:
        """Runs these experiments; the processes that they start run the copy, too."""
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--tb=short", f"--junit-xml={report}", *experiments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "SEEDS": "1", "TRIALS": "160"},
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - began
        if not report.exists():
            return Result({}, [done.stdout[-2000:] + done.stderr[-2000:]], seconds)
        complaints: dict[str, str] = {}
        errors = []
        for case in ElementTree.parse(report).iter("testcase"):
            if (error := case.find("error")) is not None or (error := case.find("skipped")) is not None:
                errors.append(f"{case.get('name')}: {error.get('message')}")
                continue
            failure = case.find("failure")
            complaints[str(case.get("name"))] = "" if failure is None else str(failure.get("message"))
        return Result(complaints, errors, seconds)


def _complaint(message: str) -> str | None:
    """The first line of what an assertion said; None when it was none of the checker or the experiment."""
    text = message.removeprefix("AssertionError: ")
    # Nor that a process died or that something did not come: that may have any reason.
    if (text == message and not text.startswith("assert ")) or text.startswith("waited "):
        return None
    return next((line.strip() for line in text.splitlines() if line.strip()), "it failed")[:110]


def _short(mutant: Mutant) -> str:
    """Its experiments by their faults' numbers, or by the files that they are in."""
    numbers = [re.search(r"fault_(\d\d)", name) for name in mutant.experiments]
    names = [f"fault {found[1]}" if found else "" for found in numbers]
    files = [Path(name.split("::")[0]).stem.removeprefix("test_") for name in mutant.experiments]
    return ", ".join(name or file for name, file in zip(names, files, strict=True))


def judge(mutant: Mutant, result: Result) -> tuple[bool, str]:
    """Whether each experiment of a mutant complained as it should, and of what."""
    if result.errors:
        return False, f"could not be run: {result.errors[0][:200]}"
    if len(result.complaints) != len(mutant.experiments):
        return False, f"{len(result.complaints)} of {len(mutant.experiments)} experiments were run"
    said = []
    for name, message in result.complaints.items():
        if not message:
            return False, f"survived {name}"
        if (complaint := _complaint(message)) is None:
            return False, f"failed, but not by an assertion: {message.splitlines()[0][:160]}"
        said.append(complaint)
    return True, "; ".join(said)


@click.command()
@click.argument("words", nargs=-1)
def main(words: tuple[str, ...]) -> None:
    """Runs all mutants, or those with one of WORDS in their name. Exits with 1 when one survives."""
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hearback-mutants-") as folder:
        copy = Copy(Path(folder))
        experiments = list(dict.fromkeys(name for mutant in chosen for name in mutant.experiments))
        green = copy.run(experiments)
        red = [f"{name}: {said.splitlines()[0]}" for name, said in green.complaints.items() if said]
        if green.errors or red or len(green.complaints) != len(experiments):
            raise click.ClickException("\n".join(["Unmutated, not all is green:", *green.errors, *red]))
        click.echo(f"unmutated: {len(experiments)} experiments are green, {green.seconds:.0f} s")
        survived = 0
        for mutant in chosen:
            with copy.mutated(mutant):
                result = copy.run(mutant.experiments)
            good, said = judge(mutant, result)
            survived += not good
            click.secho(
                f"{mutant.name:45} {_short(mutant):20} {'red' if good else 'SURVIVED':9}"
                f"{result.seconds:4.0f} s  {said}",
                fg=None if good else "red",
            )
    click.echo(
        f"{len(chosen) - survived} of {len(chosen)} mutants were seen, {time.monotonic() - began:.0f} s"
    )
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
