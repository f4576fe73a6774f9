"""Asks customers, records their answers, and alone says who may be contacted."""
