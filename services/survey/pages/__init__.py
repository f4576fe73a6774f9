"""Survey's pages for staff and customers."""
