"""Words of somebody else, made fit for a terminal."""

__all__ = ["printable"]


def printable(text: str, most: int | None = None) -> str:
    """At most so many characters in one line, none of which can move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])
