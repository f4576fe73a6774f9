"""Customers played from a file of real answers, over real HTTP, with every count checked at the end."""
