"""Settings come from the environment, from files, from the data folder; wrong ones are named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shared.settings import DATABASES, BadSettings, KafkaSettings, Settings, load, reachable

SECRET = "0123456789abcdef0123456789abcdef"


def urls(**given: str) -> dict[str, str]:
    return {
        f"HEARBACK_{name.upper()}_DATABASE_URL": f"postgresql://{name}@db/{name}" for name in DATABASES
    } | given


def environment(tmp_path: Path, **given: str) -> dict[str, str]:
    return {"HEARBACK_HOME": str(tmp_path), "HEARBACK_SECRET": SECRET, **urls(), **given}


def test_has_defaults_for_one_machine(tmp_path: Path) -> None:
    settings = load(environment(tmp_path))
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.public_url == settings.survey_url == settings.mailbox_url == "http://127.0.0.1:8080"


def test_follows_the_port_everywhere_unless_told_otherwise(tmp_path: Path) -> None:
    settings = load(
        environment(tmp_path, HEARBACK_PORT="9000", HEARBACK_PUBLIC_URL="https://feedback.example.org/")
    )
    assert settings.public_url == "https://feedback.example.org"
    assert settings.survey_url == settings.local_url == "http://127.0.0.1:9000"


def test_reads_a_secret_from_a_file(tmp_path: Path) -> None:
    given = environment(tmp_path, HEARBACK_SECRET_FILE=str(tmp_path / "kept"))
    del given["HEARBACK_SECRET"]
    with pytest.raises(BadSettings, match="HEARBACK_SECRET_FILE"):
        load(given)
    (tmp_path / "kept").write_text(SECRET + "\n")
    assert load(given).secret == SECRET


def test_finds_what_the_launcher_noted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    passwords = {name: f"p/{name}" for name in DATABASES}
    (tmp_path / "postgres.json").write_text(json.dumps({"port": 15999, "passwords": passwords}))
    settings = load({"HEARBACK_HOME": str(tmp_path)})
    assert settings.secret == SECRET
    assert settings.database_urls["log"] == "postgresql://log:p%2Flog@127.0.0.1:15999/log"


def test_says_what_is_missing_unless_it_is_the_first_start(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="hearback up"):
        load({"HEARBACK_HOME": str(tmp_path)})
    assert load({"HEARBACK_HOME": str(tmp_path)}, first_start=True).port == 8080


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEARBACK_PORT", "eighty"),
        ("HEARBACK_PORT", "70000"),
        ("HEARBACK_SECRET", "short"),
        ("HEARBACK_LOG", "paper"),
        ("HEARBACK_MAIL", "pigeon"),
        ("HEARBACK_SMS", "smoke"),
    ],
)
def test_names_the_setting_that_is_wrong(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=name):
        load(environment(tmp_path, **{name: value}))


# An event webhook's public key as SendGrid shows it: P-256 in DER, base64.
KEY = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE" + "A" * 86 + "=="
SENDGRID = {
    "HEARBACK_MAIL": "sendgrid", "SENDGRID_API_KEY": "SG.hush", "SENDGRID_WEBHOOK_PUBLIC_KEY": KEY,
}  # fmt: skip
TWILIO = {
    "HEARBACK_SMS": "twilio", "TWILIO_ACCOUNT_SID": "AC1", "TWILIO_AUTH_TOKEN": "hush",
    "TWILIO_FROM": "+14155550100",
}  # fmt: skip
SMTP = {"HEARBACK_MAIL": "smtp", "SMTP_HOST": "mail.example.org"}


def test_knows_of_providers_what_is_chosen_and_nothing_else(tmp_path: Path) -> None:
    settings = load(environment(tmp_path, **SENDGRID, **TWILIO))
    assert settings.sendgrid is not None and settings.twilio is not None and settings.smtp is None
    assert settings.sendgrid.url == "https://api.sendgrid.com" and len(settings.sendgrid.webhook_key) == 91
    assert (settings.twilio.sender, settings.twilio.service_sid) == ("+14155550100", "")
    assert not settings.uses_mailbox and "hush" not in repr(settings)
    mailbox = {"HEARBACK_MAIL": "mailbox", "HEARBACK_SMS": "mailbox"}
    unchosen = load(environment(tmp_path, **(SENDGRID | TWILIO | mailbox)))
    assert not load(environment(tmp_path, HEARBACK_MAILBOX_URL="none")).uses_mailbox
    assert unchosen.uses_mailbox and (unchosen.sendgrid, unchosen.twilio) == (None, None)


def test_provider_keys_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("SG.of-the-file\n")
    given = environment(tmp_path, **SENDGRID, SENDGRID_API_KEY_FILE=str(tmp_path / "key"))
    del given["SENDGRID_API_KEY"]
    settings = load(given)
    assert settings.sendgrid is not None and settings.sendgrid.api_key == "SG.of-the-file"


def test_a_mail_server_has_the_port_of_its_kind_of_tls(tmp_path: Path) -> None:
    for tls, port in (("starttls", 587), ("tls", 465), ("none", 25)):
        settings = load(environment(tmp_path, **SMTP, SMTP_TLS=tls))
        assert settings.smtp is not None and settings.smtp.port == port


@pytest.mark.parametrize(
    ("given", "changes", "named"),
    [
        (SENDGRID, {"SENDGRID_API_KEY": ""}, "SENDGRID_API_KEY is not set"),
        (SENDGRID, {"SENDGRID_API_KEY": "two words"}, "SENDGRID_API_KEY"),
        (SENDGRID, {"SENDGRID_WEBHOOK_PUBLIC_KEY": ""}, "SENDGRID_WEBHOOK_PUBLIC_KEY is not set"),
        (SENDGRID, {"SENDGRID_WEBHOOK_PUBLIC_KEY": KEY[:-8]}, "SENDGRID_WEBHOOK_PUBLIC_KEY"),
        (SENDGRID, {"SENDGRID_WEBHOOK_PUBLIC_KEY": "é"}, "SENDGRID_WEBHOOK_PUBLIC_KEY"),
        (SENDGRID, {"SENDGRID_API_URL": "api.sendgrid.com"}, "SENDGRID_API_URL"),
        (SENDGRID, {"HEARBACK_EXTRA_CA": "not PEM"}, "HEARBACK_EXTRA_CA"),
        (TWILIO, {"TWILIO_ACCOUNT_SID": ""}, "TWILIO_ACCOUNT_SID is not set"),
        (TWILIO, {"TWILIO_ACCOUNT_SID": "SK1"}, "TWILIO_ACCOUNT_SID"),
        (TWILIO, {"TWILIO_AUTH_TOKEN": ""}, "TWILIO_AUTH_TOKEN is not set"),
        (TWILIO, {"TWILIO_AUTH_TOKEN": "two words"}, "TWILIO_AUTH_TOKEN"),
        (TWILIO, {"TWILIO_FROM": ""}, "TWILIO_FROM is not set"),
        (TWILIO, {"TWILIO_FROM": "0123 456"}, "TWILIO_FROM"),
        (TWILIO, {"TWILIO_MESSAGING_SERVICE_SID": "MG1"}, "both set"),
        (TWILIO, {"TWILIO_FROM": "", "TWILIO_MESSAGING_SERVICE_SID": "XX"}, "TWILIO_MESSAGING_SERVICE_SID"),
        (TWILIO, {"TWILIO_API_KEY": "SK1"}, "TWILIO_API_SECRET is not set"),
        (SMTP, {"SMTP_HOST": ""}, "SMTP_HOST is not set"),
        (SMTP, {"SMTP_TLS": "ssl"}, "SMTP_TLS"),
        (SMTP, {"SMTP_PORT": "0"}, "SMTP_PORT"),
        (SMTP, {"SMTP_USER": "u"}, "SMTP_PASSWORD is not set"),
        (SMTP, {"SMTP_TLS": "none", "SMTP_USER": "u", "SMTP_PASSWORD": "p"}, "SMTP_TLS"),
    ],
)
def test_names_what_a_provider_still_needs(
    tmp_path: Path, given: dict[str, str], changes: dict[str, str], named: str
) -> None:
    with pytest.raises(BadSettings, match=named):
        load(environment(tmp_path, **(given | changes)), first_start=True)


def test_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    load(environment(tmp_path))
    with pytest.raises(BadSettings):
        load(environment(tmp_path, HEARBACK_PORT="x"))
    assert dict(os.environ) == before


def test_reaches_itself_wherever_it_listens() -> None:
    assert reachable("0.0.0.0") == reachable("::") == "127.0.0.1"
    assert reachable("::1") == "[::1]"
    assert reachable("10.0.0.5") == "10.0.0.5"


def test_derives_a_key_per_purpose_and_accepts_the_previous_secret(tmp_path: Path) -> None:
    old = Settings(home=tmp_path, secret=SECRET)
    new = Settings(home=tmp_path, secret="f" * 32, previous_secret=SECRET)
    assert old.key("session") != old.key("csrf")
    assert new.keys("session") == [old.key("session"), new.key("session")]


def test_shows_no_secret(tmp_path: Path) -> None:
    shown = repr(load(environment(tmp_path)))
    assert SECRET not in shown and "postgresql" not in shown


BROKERS = "kafka-1:9092, kafka-2:9092"


def test_knows_no_brokers_unless_it_is_told(tmp_path: Path) -> None:
    settings = load(environment(tmp_path))
    assert (settings.log, settings.kafka) == (None, None)
    # Brokers alone choose no log: who is about to move there needs both.
    settings = load(environment(tmp_path, HEARBACK_KAFKA_BOOTSTRAP=BROKERS))
    assert (settings.log, settings.kafka) == (None, KafkaSettings("kafka-1:9092,kafka-2:9092"))


def test_reads_how_the_brokers_are_reached_also_from_files(tmp_path: Path) -> None:
    for name in ("ca", "certificate", "key", "password"):
        (tmp_path / name).write_text(f"the {name}\n")
    given = environment(
        tmp_path,
        HEARBACK_LOG="kafka",
        HEARBACK_KAFKA_BOOTSTRAP="[::1]:9093",
        HEARBACK_KAFKA_SECURITY="sasl_ssl",
        HEARBACK_KAFKA_SASL_MECHANISM="PLAIN",
        HEARBACK_KAFKA_USER="hearback",
        HEARBACK_KAFKA_PREFIX="acme.",
        HEARBACK_KAFKA_POLL_SECONDS="30",
        **{
            f"HEARBACK_KAFKA_{name.upper()}_FILE": str(tmp_path / name)
            for name in ("ca", "certificate", "key", "password")
        },
    )
    settings = load(given)
    assert settings.log == "kafka"
    assert settings.kafka == KafkaSettings(
        bootstrap="[::1]:9093",
        security="sasl_ssl",
        ca="the ca",
        certificate="the certificate",
        key="the key",
        mechanism="PLAIN",
        user="hearback",
        password="the password",
        prefix="acme.",
        poll_seconds=30,
    )
    assert "the password" not in repr(settings) and "the key" not in repr(settings)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"LOG": "kafka", "KAFKA_BOOTSTRAP": ""}, "HEARBACK_KAFKA_BOOTSTRAP"),
        ({"KAFKA_BOOTSTRAP": "kafka"}, "names 'kafka'.*HOST:PORT"),
        ({"KAFKA_BOOTSTRAP": "kafka-1:9092,http://kafka-2:9092"}, "names 'http://kafka-2:9092'"),
        ({"KAFKA_SECURITY": "tls"}, "HEARBACK_KAFKA_SECURITY"),
        ({"KAFKA_SECURITY": "sasl_ssl", "KAFKA_USER": "hearback"}, "HEARBACK_KAFKA_PASSWORD"),
        ({"KAFKA_SECURITY": "sasl_plaintext", "KAFKA_PASSWORD": "x"}, "HEARBACK_KAFKA_USER"),
        ({"KAFKA_SASL_MECHANISM": "GSSAPI"}, "HEARBACK_KAFKA_SASL_MECHANISM"),
        ({"KAFKA_CERTIFICATE": "x"}, "HEARBACK_KAFKA_KEY"),
        ({"KAFKA_KEY": "x"}, "HEARBACK_KAFKA_CERTIFICATE"),
        ({"KAFKA_PREFIX": "our topics/"}, "HEARBACK_KAFKA_PREFIX"),
        ({"KAFKA_POLL_SECONDS": "1"}, "HEARBACK_KAFKA_POLL_SECONDS"),
    ],
)
def test_names_what_is_wrong_with_the_brokers(tmp_path: Path, wrong: dict[str, str], named: str) -> None:
    given = {"KAFKA_BOOTSTRAP": BROKERS} | wrong
    with pytest.raises(BadSettings, match=named):
        load(environment(tmp_path, **{f"HEARBACK_{name}": value for name, value in given.items()}))
