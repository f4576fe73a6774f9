"""Followup's pages for staff, one file each."""
