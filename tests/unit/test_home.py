"""The data folder: made once, refused when it is not ours to use, locked while it is worked on."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from shared.embedded import home as folder
from shared.embedded import processes
from shared.embedded.owner import CannotRunHere, Owner
from shared.embedded.postgres import Postgres
from shared.settings import Settings


def test_is_made_with_a_secret_that_stays(tmp_path: Path) -> None:
    home = tmp_path / "a" / "var"
    assert folder.prepare(home, own_secret=True)
    secret = (home / "secret").read_text()
    assert len(secret) > 32 and (home / "secret").stat().st_mode & 0o077 == 0
    assert not folder.prepare(home, own_secret=True)
    assert (home / "secret").read_text() == secret


def test_makes_no_secret_when_one_is_set_from_outside(tmp_path: Path) -> None:
    folder.prepare(tmp_path / "var", own_secret=False)
    assert not (tmp_path / "var" / "secret").exists()


def test_never_replaces_a_lost_secret(tmp_path: Path) -> None:
    folder.prepare(tmp_path, own_secret=True)
    (tmp_path / "postgres.json").write_text("{}")
    (tmp_path / "secret").unlink()
    with pytest.raises(CannotRunHere, match="HEARBACK_SECRET"):
        folder.prepare(tmp_path, own_secret=True)
    assert not (tmp_path / "secret").exists()


def test_never_goes_on_without_the_passwords(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "hearback.made").write_text("")
    with pytest.raises(CannotRunHere, match="postgres.json"):
        Postgres(tmp_path, Owner(os.geteuid(), os.getegid())).initialise()


def test_refuses_a_newer_and_a_damaged_format_and_changes_nothing(tmp_path: Path) -> None:
    for text, says in (
        (json.dumps({"format": 2}), "newer"),
        ("{", "damaged"),
        ('{"format": "x"}', "damaged"),
    ):
        (tmp_path / "format.json").write_text(text)
        with pytest.raises((folder.NewerHome, CannotRunHere), match=says):
            folder.prepare(tmp_path, own_secret=True)
        assert [path.name for path in tmp_path.iterdir()] == ["format.json"]


def test_says_why_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotRunHere, match="cannot be written.*HEARBACK_HOME"):
        folder.prepare(tmp_path / "file" / "var", own_secret=True)


def test_only_one_works_on_it_at_a_time(tmp_path: Path) -> None:
    folder.prepare(tmp_path, own_secret=True)
    waited = threading.Event()
    order: list[str] = []

    def second() -> None:
        with folder.locked(tmp_path, waited.set):
            order.append("second")

    with folder.locked(tmp_path, lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_gives_up_waiting_with_a_sentence(tmp_path: Path) -> None:
    folder.prepare(tmp_path, own_secret=True)
    with (
        folder.locked(tmp_path, lambda: None),
        pytest.raises(CannotRunHere, match="Another"),
        folder.locked(tmp_path, lambda: None, timeout=0.1),
    ):
        raise AssertionError("two have the lock")


def test_knows_a_process_by_its_start_not_its_number_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "web.pid"
    with processes.pid_file(tmp_path, "web"):
        assert [process.pid for process in processes.noted(tmp_path)] == [os.getpid()]
        number, began = path.read_text().split()
    assert not path.exists()
    for text in (f"{number} {float(began) - 5}", number, "", "nonsense here"):
        path.write_text(text)
        assert processes.noted(tmp_path) == []


@pytest.mark.parametrize("step", range(1, 11))
def test_a_restore_killed_at_any_step_leaves_the_old_state_or_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    ready = tmp_path / "restoring"
    for place, text in ((tmp_path, "old"), (ready / folder.NEW, "new")):
        (place / "postgres").mkdir(parents=True)
        (place / "postgres" / "data").write_text(text)
        for name in ("postgres.json", "secret"):
            (place / name).write_text(text)
        (place / "format.json").write_text('{"format": 1}')
    left, replace = step, Path.replace

    def killed(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.put_in(tmp_path, ready, "now")
    folder.prepare(tmp_path, own_secret=True)
    texts = {(tmp_path / name).read_text() for name in ("postgres/data", "postgres.json", "secret")}
    assert texts == {"old" if step == 1 else "new"}
    aside = tmp_path / "before-restore-now"
    assert aside.exists() == (step > 1)
    assert step == 1 or (aside / "postgres" / "data").read_text() == "old"
    assert not (tmp_path / "restored-now").exists()
    assert not ready.exists()


def test_what_a_killed_restore_has_copied_is_removed_by_the_next_start_but_not_while_it_works(
    tmp_path: Path,
) -> None:
    folder.prepare(tmp_path, own_secret=True)
    copy = tmp_path / "restoring" / folder.NEW
    copy.mkdir(parents=True)
    (copy / "secret").write_text("of the backup")
    waited = threading.Event()
    with folder.locked(tmp_path, lambda: None):
        start = threading.Thread(target=lambda: folder.prepare(tmp_path, own_secret=True, waiting=waited.set))
        start.start()
        assert waited.wait(10) and (copy / "secret").exists()
    start.join()
    assert not (tmp_path / "restoring").exists()


def test_a_command_with_another_secret_than_what_runs_is_refused(tmp_path: Path) -> None:
    folder.prepare(tmp_path, own_secret=True)
    old, new = (Settings(home=tmp_path, secret=letter * 40) for letter in "on")
    folder.check_secret(old)  # nothing runs
    folder.note_secret(new)
    folder.check_secret(new)
    with pytest.raises(CannotRunHere, match="HEARBACK_SECRET"):
        folder.check_secret(old)
    assert all(new.secret not in path.read_text() for path in (tmp_path / "run").iterdir())
