"""The API of customers and imports: keys and scopes, create or change, lists by cursor, upload and report."""

from __future__ import annotations

import io
import uuid

from services.survey import importer
from tests.support.customers import Survey


def test_a_customer_is_created_then_changed_by_identity(survey: Survey) -> None:
    api = survey.api()
    made = api(
        "POST", "/survey/api/customers", json={"external_id": "1", "email": "Ann@Example.com", "name": "Ann"}
    )
    assert made.status_code == 201, made.text
    assert made.json
    assert made.headers["Location"].endswith(f"/survey/api/customers/{made.json['id']}")
    again = api(
        "POST", "/survey/api/customers", json={"email": "ann@example.COM", "properties": {"size": "4"}}
    )
    assert again.status_code == 200
    assert again.json
    assert (again.json["id"], again.json["name"], again.json["properties"]) == (
        made.json["id"],
        "Ann",
        {"size": "4"},
    )


def test_patch_changes_what_is_given_and_null_clears(survey: Survey) -> None:
    api = survey.api()
    made = api(
        "POST",
        "/survey/api/customers",
        json={"external_id": "1", "name": "Ann", "account": "ACME", "tier": "a"},
    )
    assert made.json
    path = f"/survey/api/customers/{made.json['id']}"
    changed = api("PATCH", path, json={"name": None, "phone": "+49 30 1234567", "tier": "b"})
    assert changed.status_code == 200, changed.text
    assert changed.json
    assert (changed.json["name"], changed.json["phone"], changed.json["account"]["tier"]) == (
        None,
        "+49301234567",
        "b",
    )
    nobody = api("PATCH", path, json={"external_id": None, "phone": None})
    assert nobody.status_code == 422
    assert api("PATCH", f"/survey/api/customers/{uuid.uuid4()}", json={"name": "x"}).status_code == 404


def test_another_customers_address_is_a_conflict_and_changes_nothing(survey: Survey) -> None:
    api = survey.api()
    api("POST", "/survey/api/customers", json={"external_id": "1", "email": "ann@example.com"})
    bob = api("POST", "/survey/api/customers", json={"external_id": "2", "name": "Bob"})
    assert bob.json
    reply = api(
        "PATCH", f"/survey/api/customers/{bob.json['id']}", json={"email": "ann@example.com", "name": "Rob"}
    )
    assert reply.status_code == 409
    assert reply.content_type == "application/problem+json"
    assert reply.json
    assert reply.json["errors"][0]["field"] == "email"
    assert survey.customer(external_id="2")["name"] == "Bob"


def test_bad_values_are_named_by_field(survey: Survey) -> None:
    reply = survey.api()(
        "POST", "/survey/api/customers", json={"email": "nope", "phone": "12", "language": "?", "x": 1}
    )
    assert reply.status_code == 422
    assert reply.json
    assert {error["field"] for error in reply.json["errors"]} == {"email", "phone", "language", "x"}


def test_an_idempotency_key_makes_one_customer(survey: Survey) -> None:
    api = survey.api()
    replies = [
        api("POST", "/survey/api/customers", json={"external_id": "1"}, headers={"Idempotency-Key": "a"})
        for _ in range(2)
    ]
    assert [reply.status_code for reply in replies] == [201, 201]
    assert replies[0].json == replies[1].json


def test_scopes_are_needed(survey: Survey) -> None:
    reader = survey.api("customers:read")
    assert reader("GET", "/survey/api/customers").status_code == 200
    for method, path in (
        ("POST", "/survey/api/customers"),
        ("PATCH", f"/survey/api/customers/{uuid.uuid4()}"),
        ("DELETE", f"/survey/api/customers/{uuid.uuid4()}"),
        ("POST", "/survey/api/customers/import"),
        ("POST", f"/survey/api/imports/{uuid.uuid4()}/stop"),
    ):
        assert reader(method, path, json={}).status_code == 403, path
    assert survey.app.test_client().get("/survey/api/customers").status_code == 401


def test_lists_page_by_cursor_and_filter(survey: Survey) -> None:
    survey.import_("id,name,account\n" + "".join(f"{n},Name {n:03},Acc {n % 2}\n" for n in range(25)))
    api = survey.api()
    seen: list[str] = []
    cursor = ""
    while True:
        page = api("GET", f"/survey/api/customers?limit=10{cursor}").json
        assert page
        seen += [row["external_id"] for row in page["customers"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == [str(n) for n in range(25)]
    account = survey.one("SELECT id FROM account WHERE name = 'Acc 1'")["id"]
    assert len(api("GET", f"/survey/api/customers?account_id={account}&limit=100").json["customers"]) == 12  # type: ignore[index]
    found = api("GET", "/survey/api/customers?external_id=7").json
    assert found
    assert [row["name"] for row in found["customers"]] == ["Name 007"]
    assert api("GET", "/survey/api/customers?cursor=zzz").status_code == 422


def test_erasure_takes_kept_replies_along(survey: Survey) -> None:
    api = survey.api()
    once = {"Idempotency-Key": "ann"}
    made = api("POST", "/survey/api/customers", json={"external_id": "1", "name": "Ann"}, headers=once)
    api(
        "POST",
        "/survey/api/customers",
        json={"external_id": "2", "name": "Bob"},
        headers={"Idempotency-Key": "b"},
    )
    assert made.json
    api("DELETE", f"/survey/api/customers/{made.json['id']}")
    kept = [bytes(row["body"]) for row in survey.all("SELECT body FROM idempotency WHERE body IS NOT NULL")]
    assert len(kept) == 1 and b"Bob" in kept[0]


def test_delete_erases_and_is_published(survey: Survey) -> None:
    survey.import_("id,email\n1,ann@example.com\n")
    customer = survey.customer(external_id="1")
    survey.events()
    api = survey.api()
    assert api("DELETE", f"/survey/api/customers/{customer['id']}").status_code == 204
    (event,) = survey.events()
    assert (event["type"], event["key"], event["version"], event["data"]) == (
        "customer.changed",
        customer["id"],
        2,
        None,
    )
    assert api("GET", f"/survey/api/customers/{customer['id']}").status_code == 404
    assert api("DELETE", f"/survey/api/customers/{customer['id']}").status_code == 404


def test_an_upload_runs_in_the_background_and_its_run_tells(survey: Survey) -> None:
    api = survey.api()
    sent = api(
        "POST",
        "/survey/api/customers/import?file_name=crm.csv",
        data=b"id,email\n1,nope\n2,b@example.com\n",
        content_type="text/csv",
    )
    assert sent.status_code == 202, sent.text
    where = sent.headers["Location"]
    waiting = api("GET", where).json
    assert waiting
    assert (waiting["state"], waiting["file_name"]) == ("waiting", "crm.csv")
    assert importer.work(survey.db, survey.fingerprints)
    run = api("GET", where).json
    assert run
    assert (run["state"], run["created"], run["failed"], run["rows"]) == ("done", 1, 1, 2)
    assert run["errors"] == [{"line": 2, "column": "email", "reason": "is not an e-mail address"}]
    assert survey.all("SELECT 1 FROM import_chunk") == []


def test_wait_answers_with_the_report_also_for_forms(survey: Survey) -> None:
    reply = survey.api()(
        "POST",
        "/survey/api/customers/import?wait=1&region=de",
        data={"file": (io.BytesIO(b"Tel\n030 1234567\n"), "files/list.csv")},
        content_type="multipart/form-data",
    )
    assert reply.status_code == 200, reply.text
    assert reply.json
    assert (reply.json["state"], reply.json["created"], reply.json["region"]) == ("done", 1, "DE")
    assert reply.json["file_name"] == "list.csv"


def test_a_repeated_upload_with_its_key_finds_its_run(survey: Survey) -> None:
    api = survey.api()
    replies = [
        api(
            "POST",
            "/survey/api/customers/import",
            data=b"id\n1\n",
            content_type="text/csv",
            headers={"Idempotency-Key": "k"},
        )
        for _ in range(2)
    ]
    assert replies[0].headers["Location"] == replies[1].headers["Location"]
    assert survey.one("SELECT count(*) AS n FROM import_run")["n"] == 1


def test_an_upload_without_a_file_or_with_a_wrong_country_is_refused(survey: Survey) -> None:
    api = survey.api()
    assert (
        api("POST", "/survey/api/customers/import", data={}, content_type="multipart/form-data").status_code
        == 422
    )
    wrong = api("POST", "/survey/api/customers/import?region=ZZ", data=b"id\n1\n", content_type="text/csv")
    assert wrong.status_code == 422
    assert survey.all("SELECT 1 FROM import_run") == []


def test_the_openapi_document_names_the_routes(survey: Survey) -> None:
    document = survey.app.test_client().get("/survey/api/openapi.json").json
    assert document
    for path in ("/survey/api/customers", "/survey/api/customers/import", "/survey/api/imports/{run_id}"):
        assert path in document["paths"]
