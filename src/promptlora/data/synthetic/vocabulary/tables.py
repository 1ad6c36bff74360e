"""Parses the tables in this folder, which are plain texts with one entry per cell so that they stay readable."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """Words separated by white space."""
    return tuple(text.split())


def lines(text: str) -> tuple[str, ...]:
    """Phrases, one per line."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def table(text: str) -> tuple[tuple[str, ...], ...]:
    """Entries separated by semicolons or line ends; the cells of an entry are separated by colons."""
    entries = [entry.strip() for line in text.splitlines() for entry in line.split(";")]
    return tuple(tuple(cell.strip() for cell in entry.split(":")) for entry in entries if entry)


def pairs(text: str) -> dict[str, str]:
    """A table of two columns as a mapping."""
    return {row[0]: row[1] for row in table(text)}
