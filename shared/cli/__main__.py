"""`python -m shared.cli`: the `hearback` command without its script."""

from shared.cli import main

main()
