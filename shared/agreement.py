"""Whether what a service keeps of another one's is what its owner has: row by row, under traffic as well."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shared.db import Database
from shared.settings import SERVICES

_BATCH = 5_000
_FIRST = "00000000-0000-0000-0000-000000000000"

_Row = tuple[int, str]
"""Its version, and what stands in it that figures are made of."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a `keeper` has otherwise than its `owner`: what it `lacks` (as the owner had it), and the ids of
    what it has `besides`, which the owner does not have, or not in so new a version."""

    what: str
    owner: str
    keeper: str
    lacks: Mapping[str, _Row]
    besides: frozenset[str]

    def __len__(self) -> int:
        return len(self.besides.union(self.lacks))

    def __str__(self) -> str:
        parts = [f"lacks {len(self.lacks):,} of {self.owner}'s {self.what}"] if self.lacks else []
        if self.besides:
            parts.append(f"has {len(self.besides):,} {self.what} that {self.owner} does not have so")
        return f"{self.keeper} {' and '.join(parts)}"


def differences(
    databases: Mapping[str, Database],
    keepers: Sequence[str] = SERVICES,
    arrive: Callable[[], None] = lambda: None,
) -> list[Difference]:
    """All there are between the services, of which these `keepers` are asked.

    When something differs, `arrive` is called, which returns when what was published by then has been heard,
    and that is looked at again: what was only under way does not differ any more.
    """
    found = [one for keeper in keepers for one in _of(databases, keeper) if len(one)]
    if found:
        arrive()
    return [one for one in (_again(databases, one) for one in found) if len(one)]


def besides(databases: Mapping[str, Database], owner: str, keeper: str) -> dict[str, int]:
    """How much of what the keeper has heard of its owner does not have (any more), or not so new."""
    return {one.what: len(one.besides) for one in _of(databases, keeper, [owner])}


def _of(
    databases: Mapping[str, Database], keeper: str, owners: Sequence[str] = SERVICES
) -> Iterator[Difference]:
    for what, heard in _tables(keeper, "HEARD").items():
        owner = next(service for service in SERVICES if what in _tables(service, "OWNED"))
        if owner not in owners:
            continue
        owned = _tables(owner, "OWNED")[what]
        theirs, ours = databases[owner], databases[keeper]
        lacks: dict[str, _Row] = {}
        more: set[str] = set()
        # Whoever is read second may be ahead, by what came meanwhile; never behind.
        for rows in _all(theirs, owned):
            lacks |= _lacking(rows, _some(ours, heard, rows))
        for rows in _all(ours, heard):
            more |= _ahead(rows, _some(theirs, owned, rows))
        yield Difference(what, owner, keeper, lacks, frozenset(more))


def _again(databases: Mapping[str, Database], found: Difference) -> Difference:
    owned, heard = _tables(found.owner, "OWNED")[found.what], _tables(found.keeper, "HEARD")[found.what]
    theirs, ours = databases[found.owner], databases[found.keeper]
    lacks: dict[str, _Row] = {}
    more: set[str] = set()
    for ids in _batches(sorted(found.lacks)):
        present = _some(theirs, owned, ids)  # who was erased meanwhile is not lacking
        rows = {id: found.lacks[id] for id in ids if id in present}
        lacks |= _lacking(rows, _some(ours, heard, ids))
    for ids in _batches(sorted(found.besides)):
        more |= _ahead(_some(ours, heard, ids), _some(theirs, owned, ids))
    return Difference(found.what, found.owner, found.keeper, lacks, frozenset(more))


def _lacking(owned: Mapping[str, _Row], heard: Mapping[str, _Row]) -> dict[str, _Row]:
    """What is not heard as it is, or newer."""
    return {
        id: row
        for id, row in owned.items()
        if id not in heard or heard[id][0] < row[0] or (heard[id][0] == row[0] and heard[id] != row)
    }


def _ahead(heard: Mapping[str, _Row], owned: Mapping[str, _Row]) -> set[str]:
    return {id for id, row in heard.items() if id not in owned or owned[id][0] < row[0]}


def _tables(service: str, name: str) -> Mapping[str, str]:
    found: Mapping[str, str] = getattr(importlib.import_module(f"services.{service}.rebuild"), name)
    return found


def _all(db: Database, rows: str) -> Iterator[Mapping[str, _Row]]:
    after = _FIRST
    while found := _read(db, f"{rows} AND id > %s ORDER BY id LIMIT {_BATCH}", after):
        yield found
        after = max(found)


def _some(db: Database, rows: str, ids: Iterable[str]) -> Mapping[str, _Row]:
    return _read(db, f"{rows} AND id = ANY(%s::uuid[])", list(ids))


def _read(db: Database, query: str, argument: object) -> Mapping[str, _Row]:
    with db.transaction() as tx:
        return {str(row["id"]): (row["version"], row["said"]) for row in tx.all(query, (argument,))}


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(ids), _BATCH):
        yield ids[begin : begin + _BATCH]
