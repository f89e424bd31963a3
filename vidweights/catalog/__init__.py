"""The catalog of releases."""
