"""The channels to people (mail, SMS): the port, its adapters, and the delivery ledger."""
