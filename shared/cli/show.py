"""How the command shows what it does: steps with a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from shared.embedded.readiness import Part


class Steps:
    """Shows each step while it lasts and how long it took; `quiet` for who reads JSON."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=False, highlight=False, soft_wrap=True, quiet=quiet)

    @contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """The block is the step; the function it gets adds a word on how far it is."""
        began = time.monotonic()
        try:
            if not self.console.is_terminal:
                yield lambda _: None
            else:
                with self.console.status(escape(text)) as status:
                    yield lambda word: status.update(f"{escape(text)} [dim]{escape(word)}[/dim]")
        except BaseException:
            self.console.print(f"[red]✗[/red] {escape(text)}")
            raise
        self.console.print(f"[green]✓[/green] {escape(text)} [dim]{time.monotonic() - began:.1f} s[/dim]")

    def note(self, text: str) -> None:
        """A sentence that stays."""
        self.console.print(f"· {escape(text)}")


def line(console: Console, part: Part, *, width: int) -> None:
    """One part in one line: a mark, its name, and what is wrong or what is known of it."""
    mark = "[green]✓[/green]" if part.ok else "[red]✗[/red]"
    said = part.problem or str(part.facts.get("said", "fine"))
    console.print(f"{mark} {escape(part.name.ljust(width))}  {escape(said)}")
