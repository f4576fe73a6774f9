"""The terminal: importing with constant memory, exit codes, and the company's settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.cli import main
from tests.support.customers import Survey

ROOT = Path(__file__).parents[3]


@pytest.fixture
def environment(survey: Survey, tmp_path: Path) -> dict[str, str]:
    """What a `hearback` of this test's databases needs."""
    urls = {
        f"HEARBACK_{name.upper()}_DATABASE_URL": survey.settings.database_urls["survey"]
        for name in ("survey", "followup", "reporting", "log")
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEARBACK_")}
    return {**kept, **urls, "HEARBACK_HOME": str(tmp_path), "HEARBACK_SECRET": survey.settings.secret}


def hearback(environment: dict[str, str], *arguments: str) -> tuple[int, str, str, int]:
    """Runs a command: exit code, stdout, stderr, and the most memory it held (kB)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shared.cli", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    process.stderr.close()
    return process.returncode, out, err, usage.ru_maxrss


@pytest.fixture
def command(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit code, stdout, stderr."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def write(path: Path, lines: Iterator[str]) -> Path:
    with path.open("w") as file:
        file.writelines(lines)
    return path


def customers(n: int) -> Iterator[str]:
    yield "id,email,phone,name,account,shoe size\n"
    for i in range(n):
        yield f"{n}-{i},{n}.{i}@example.com,+4930{n:05}{i:05},Name {i},Acc {i % 50},{i}\n"


def test_ten_times_the_rows_need_no_more_memory(
    survey: Survey, environment: dict[str, str], tmp_path: Path
) -> None:
    held = {}
    for n in (2_000, 20_000):
        file = write(tmp_path / f"{n}.csv", customers(n))
        code, out, err, held[n] = hearback(environment, "import", "customers", str(file))
        assert code == 0, err
        assert f"{n:,} new, 0 changed, 0 as before, 0 left out" in out
    # 18,000 rows kept anywhere would be 20 MB and more.
    assert held[20_000] - held[2_000] < 6_000, held


def test_bad_lines_are_printed_written_and_told_by_the_exit_code(
    survey: Survey, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "list.csv"
    file.write_text("id,email,account,account manager\n1,nope,,\n2,b@example.com,ACME,joe@us.example\n")
    errors = tmp_path / "errors.csv"
    code, out, _ = command("import", "customers", str(file), "--errors", str(errors))
    assert code == 1
    assert "1 new, 0 changed, 0 as before, 1 left out" in out
    assert "line 2, email: is not an e-mail address" in out
    assert "Account managers without a login: joe@us.example." in out
    assert errors.read_text().splitlines() == ["line,column,reason", "2,email,is not an e-mail address"]
    code, out, _ = command("import", "customers", str(file), "--json")
    assert json.loads(out)["unchanged"] == 1
    bad = tmp_path / "bad.csv"
    bad.write_text("town\nRome\n")
    code, _, err = command("import", "customers", str(bad))
    assert code != 0
    assert "No column is an external id" in err


def test_settings_are_listed_read_and_changed_as_on_the_page(
    survey: Survey, command: Callable[..., tuple[int, str, str]]
) -> None:
    def config(*arguments: str) -> tuple[int, str, str]:
        return command("config", *arguments)

    code, out, _ = config()
    assert code == 0
    assert "first_contact_hours" in out
    assert config("set", "name", "Acme GmbH")[0] == 0
    assert config("set", "business_hours", "mon-thu 08:00-18:00, fri 8:00-13:00")[:2] == (
        0,
        "business_hours  mon-thu 08:00-18:00, fri 08:00-13:00\n",
    )
    assert config("get", "name")[1] == "Acme GmbH\n"
    hours = json.loads(config("get", "business_hours", "--json")[1])
    assert hours["fri"] == ["08:00", "13:00"]
    for name, value, says in (
        ("time_zone", "Mars", "not a time zone"),
        ("fallback_owner", "nobody@us.example", "can log in"),
        ("business_hours", "never", "cannot be read"),
        ("colour", "blue", "#1f5fbf"),
        ("nonsense", "1", "There is no setting"),
    ):
        code, _, err = config("set", name, value)
        assert code != 0
        assert says in err
    assert [event["version"] for event in survey.events("company.changed")] == [1, 2, 3]
