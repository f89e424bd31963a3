"""Where a fact was read, as a person can follow it."""

from __future__ import annotations

_GITHUB = "https://github.com"


def link(source: str) -> str:
    """The address of a source `OWNER/NAME@COMMIT:PATH`, which is on GitHub; any other source as it stands."""
    repository, _, rest = source.partition("@")
    commit, _, path = rest.partition(":")
    plain = path and commit and repository.count("/") == 1 and " " not in source
    return f"{_GITHUB}/{repository}/blob/{commit}/{path}" if plain else source


def shown(source: str) -> str:
    """Sources, with semicolons between them, in Markdown: links where they are addresses, and else their words."""
    return "; ".join(f"[{part}]({link(part)})" if link(part) != part else part for part in source.split("; "))
