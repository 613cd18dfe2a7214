"""Splits captions into words. Imports no torch."""


def words_of(caption: str) -> list[str]:
    """Return a caption's words in lower case, without commas and full stops."""
    return caption.lower().replace(",", " ").replace(".", " ").split()
