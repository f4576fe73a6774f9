"""Importing customers: identity, empty cells, opt-outs, bad lines, encodings, and the same file twice."""

from __future__ import annotations

import pytest

from services.survey.commands import erase, opt_out
from tests.support.customers import Survey

HEAD = (
    "external id,email,phone,name,account,account manager,tier,annual value,language,time zone,touchpoint,"
    "shoe size\n"
)


def test_every_column_arrives_and_any_further_one_is_a_property(survey: Survey) -> None:
    run = survey.import_(
        HEAD
        + "7,Ann@Example.com,+49 30 1234567,Ann Lee,ACME  Corp,Joe@us.example,gold,"
        + '"€1,234.56",de_DE,europe/berlin,order,42\n'
    )
    assert (run["state"], run["created"], run["failed"]) == ("done", 1, 0)
    customer = survey.customer(external_id="7")
    assert customer["email"] == "Ann@example.com"
    assert customer["email_key"] == "ann@example.com"
    assert customer["phone"] == "+49301234567"
    assert (customer["language"], customer["time_zone"], customer["touchpoint"]) == (
        "de-de",
        "Europe/Berlin",
        "order",
    )
    assert customer["properties"] == {"shoe size": "42"}
    account = survey.one("SELECT * FROM account")
    assert (account["name"], account["tier"], str(account["annual_value"])) == (
        "ACME Corp",
        "gold",
        "1234.56",
    )
    assert account["manager_email"] == "joe@us.example"
    assert run["unknown_managers"] == ["joe@us.example"]
    event = survey.events("customer.changed")[0]
    assert event["key"] == customer["id"]
    assert event["version"] == 1
    assert event["data"]["account"]["annual_value"] == "1234.56"


def test_the_same_file_twice_changes_nothing(survey: Survey) -> None:
    file = HEAD + "".join(
        f"{n},c{n}@example.com,,C {n},Acc {n % 7},,tier,{n},en,,,{n}\n" for n in range(2_500)
    )
    first = survey.import_(file)
    assert first["created"] == 2_500
    before = survey.all("SELECT * FROM customer ORDER BY id")
    survey.events()
    again = survey.import_(file)
    # The annual value differs within an account: the last line of each account wins both times, but the
    # lines before it are in other batches.
    assert again["failed"] == again["created"] == 0
    file = HEAD + "".join(f"{n},c{n}@example.com,,C {n},Acc {n % 7},,tier,9,en,,,{n}\n" for n in range(2_500))
    survey.import_(file)
    survey.events()
    versions = survey.all("SELECT id, version, updated_at FROM customer ORDER BY id")
    third = survey.import_(file)
    assert third["unchanged"] == 2_500
    assert third["updated"] == 0
    assert survey.events() == []
    assert survey.all("SELECT id, version, updated_at FROM customer ORDER BY id") == versions
    assert len(before) == len(versions)


def test_an_empty_cell_changes_nothing(survey: Survey) -> None:
    survey.import_(HEAD + "7,ann@example.com,+4930123456,Ann,ACME,,gold,10,de,Europe/Berlin,order,42\n")
    survey.events()
    run = survey.import_(HEAD + "7,,,,,,,,,,,\n")
    assert (run["unchanged"], survey.events()) == (1, [])
    assert survey.customer(external_id="7")["properties"] == {"shoe size": "42"}


def test_identity_is_external_id_else_email_else_phone(survey: Survey) -> None:
    survey.import_(
        "id,email,phone,name\n1,ann@example.com,,Ann\n,bob@example.com,+4930111111,Bob\n,,+4930222222,Cy\n"
    )
    run = survey.import_(
        "id,email,phone,name\n"
        "1,ann.new@example.com,,Ann N\n"  # by external id: her address changed
        "2,BOB@example.com,,Bob B\n"  # by e-mail: he gets an external id
        ",,+49 30 222222,Cy C\n"  # by phone
    )
    assert (run["updated"], run["created"], run["failed"]) == (3, 0, 0)
    assert survey.customer(external_id="1")["email"] == "ann.new@example.com"
    assert survey.customer(external_id="2")["name"] == "Bob B"
    assert survey.customer(phone="+4930222222")["name"] == "Cy C"


def test_a_row_that_matches_two_customers_is_an_error(survey: Survey) -> None:
    survey.import_("id,email\n1,ann@example.com\n2,bob@example.com\n")
    run = survey.import_("id,email\n1,bob@example.com\n3,cy@example.com\n")
    assert run["created"] == 1
    assert run["errors"] == [
        (2, "email", "the row matches two customers: external id and e-mail belong to different ones")
    ]


def test_an_address_of_somebody_with_another_stronger_key_is_an_error(survey: Survey) -> None:
    survey.import_("id,email,phone\n1,ann@example.com,+4930111111\n")
    run = survey.import_("id,email,phone\n2,ann@example.com,\n,new@example.com,+4930111111\n")
    assert [(line, column) for line, column, _ in run["errors"]] == [(2, "email"), (3, "phone")]
    assert survey.one("SELECT count(*) AS n FROM customer")["n"] == 1


def test_rows_of_one_file_are_applied_in_order(survey: Survey) -> None:
    run = survey.import_(
        "id,email,name\n1,a@example.com,First\n1,,Second\n2,b@example.com,Bob\n1,c@example.com,\n"
        "3,a@example.com,Takes over\n"
    )
    assert (run["created"], run["updated"], run["failed"]) == (3, 2, 0)
    assert survey.customer(external_id="1")["name"] == "Second"
    assert survey.customer(email_key="a@example.com")["external_id"] == "3"
    assert [event["version"] for event in survey.events("customer.changed")] == [1, 1, 1]


def test_addresses_can_change_hands_within_one_batch(survey: Survey) -> None:
    survey.import_("id,email\n1,a@example.com\n2,b@example.com\n3,c@example.com\n")
    run = survey.import_("id,email\n3,d@example.com\n2,c@example.com\n1,b@example.com\n")
    assert run["updated"] == 3
    rows = survey.all("SELECT external_id, email FROM customer ORDER BY external_id")
    assert [tuple(row.values()) for row in rows] == [
        ("1", "b@example.com"),
        ("2", "c@example.com"),
        ("3", "d@example.com"),
    ]


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_an_opt_out_survives_reimport_erasure_and_a_new_address(survey: Survey, channel: str) -> None:
    row = "id,email,phone\n1,ann@example.com,+4930111111\n"
    survey.import_(row)
    customer = survey.customer(external_id="1")
    with survey.db.transaction() as tx:
        assert opt_out.opt_out(tx, customer["id"], channel, "link", survey.fingerprints)
    survey.import_(row)
    assert survey.customer(external_id="1")[f"{channel}_opt_out_at"] is not None
    # The person opted out, so their new address is out too, also after their erasure.
    new = "id,email,phone\n1,new@example.com,+4930999999\n"
    survey.import_(new)
    with survey.db.transaction() as tx:
        assert erase.erase(tx, customer["id"], survey.fingerprints)
    survey.events()
    for file in (row, new.replace("\n1,", "\n2,")):
        survey.import_(file)
    back = survey.all("SELECT * FROM customer ORDER BY external_id")
    assert len(back) == 2
    assert all(one[f"{channel}_opt_out_at"] is not None for one in back)
    may = "may_email" if channel == "email" else "may_sms"
    assert [event["data"][may] for event in survey.events("customer.changed")] == [False, False]


def test_bad_lines_are_named_by_number_column_and_reason_and_good_ones_kept(survey: Survey) -> None:
    run = survey.import_(
        "Customer ID;E-Mail;Mobile;ARR;Lang;TZ;Note\r\n"  # 1
        '1;ann@example.com;;;;;"two\r\nlines"\r\n'  # 2, 3
        "2;not an address;;;;;\r\n"  # 4
        "3;;030 1234;;;;\r\n"  # 5
        "4;;;-5;;;\r\n"  # 6
        "5;;;;klingon!;;\r\n"  # 7
        "6;;;;;Mars/Olympus;\r\n"  # 8
        "7;;\r\n"  # 9
        "8;;;;;;;extra\r\n"  # 10
        ";;;;;;nobody\r\n"  # 11
        "\r\n"  # 12: blank
        '9;;;;;;"never closed\r\n'  # 13
        "10;ok@example.com;;;;;\r\n"  # 14
        "11;;;;;;nul\0byte\r\n"  # 15
        f"{'x' * 201};;;;;;\r\n"  # 16
    )
    assert [(line, column) for line, column, _ in run["errors"]] == [
        (4, "E-Mail"),
        (5, "Mobile"),
        (6, "ARR"),
        (7, "Lang"),
        (8, "TZ"),
        (9, None),
        (10, None),
        (11, None),
        (13, None),
        (15, None),
        (16, "Customer ID"),
    ]
    reasons = [reason for _, _, reason in run["errors"]]
    assert reasons[0] == "is not an e-mail address"
    assert "country code" in reasons[1]
    assert reasons[5] == "the line has 3 cells, the first line has 7 columns"
    assert reasons[8] == "a quotation mark is opened and never closed"
    assert reasons[9] == "the line contains a NUL byte"
    assert (run["created"], run["failed"], run["rows"]) == (2, 11, 13)
    assert survey.customer(external_id="1")["properties"] == {"Note": "two\r\nlines"}
    assert survey.customer(external_id="10")["email"] == "ok@example.com"


@pytest.mark.parametrize(
    ("data", "encoding", "delimiter"),
    [
        ("Kundennummer;Name\n1;Jörg Müßig\n".encode("cp1252"), "cp1252", ";"),
        ("Kundennummer\tName\n1\tJörg Müßig\n".encode("utf-8-sig"), "utf-8-sig", "\t"),
        ("Kundennummer,Name\n1,Jörg Müßig\n".encode("utf-16"), "utf-16", ","),
        ("Kundennummer|Name\n1|Jörg Müßig\n".encode("utf-16-le"), "utf-16-le", "|"),
        ("sep=;\nKundennummer;Name\n1;Jörg Müßig\n".encode(), "utf-8", ";"),
        ("Kundennummer,Name\r1,Jörg Müßig\r".encode(), "utf-8", ","),
    ],
)
def test_encodings_and_delimiters_are_found_out_and_named(
    survey: Survey, data: bytes, encoding: str, delimiter: str
) -> None:
    run = survey.import_(data)
    assert (run["state"], run["encoding"], run["delimiter"], run["failed"]) == (
        "done",
        encoding,
        delimiter,
        0,
    )
    assert survey.customer(external_id="1")["name"] == "Jörg Müßig"


def test_a_few_bad_bytes_do_not_spoil_a_good_file(survey: Survey) -> None:
    lines = [
        b"id,name\n",
        *(f"{n},Jörg {n}\n".encode() for n in range(5)),
        "9,Jörg\n".encode("cp1252"),
    ]
    run = survey.import_(b"".join(lines))
    assert (run["created"], run["encoding"]) == (5, "utf-8")
    assert run["errors"] == [(7, None, "the line is not valid UTF-8, while the rest of the file is")]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"name,town\nAnn,Rome\n", "No column is an external id, an e-mail or a phone number"),
        (b"email,E-Mail\na@example.com,\n", "both read as e-mail"),
        (b"PK\x03\x04\x14\x00", "no text file"),
    ],
)
def test_a_file_that_is_no_customer_file_fails_with_a_sentence(
    survey: Survey, data: bytes, says: str
) -> None:
    run = survey.import_(data)
    assert run["state"] == "failed"
    assert says in run["message"]
    assert survey.all("SELECT 1 FROM customer") == []


def test_an_account_change_is_carried_by_one_customer_and_counts_its_own_version(survey: Survey) -> None:
    survey.import_("id,account,tier\n1,ACME,gold\n2,acme,\n3,ACME,\n")
    survey.events()
    survey.import_("id,account,tier\n2,ACME,silver\n")
    (event,) = survey.events()
    assert (event["version"], event["data"]["account"]["version"], event["data"]["account"]["tier"]) == (
        2,
        2,
        "silver",
    )
    # One whose customer leaves in the same file is carried by somebody who stayed.
    survey.import_("id,account,tier\n2,ACME,bronze\n2,Other,\n")
    blocks = {(e["data"]["account"]["name"], e["data"]["account"]["version"]) for e in survey.events()}
    assert blocks == {("ACME", 3), ("Other", 1)}


def test_a_manager_without_an_account_is_an_error_unless_the_customer_has_one(survey: Survey) -> None:
    survey.staff(email="joe@us.example")
    survey.import_("id,account\n1,ACME\n2,\n")
    run = survey.import_("id,account manager\n1,joe@us.example\n2,joe@us.example\n")
    assert run["updated"] == 1
    assert [(line, column) for line, column, _ in run["errors"]] == [(3, "account manager")]
    assert run["unknown_managers"] == []


def test_a_default_country_is_an_option(survey: Survey) -> None:
    run = survey.import_("id,phone\n1,030 1234567\n", region="DE")
    assert run["failed"] == 0
    assert survey.customer(external_id="1")["phone"] == "+49301234567"
