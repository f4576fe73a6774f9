"""Three months of made-up history, played through the real edges with a clock of its own."""
