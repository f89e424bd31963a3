"""The card template, and cards that were rendered from it."""
