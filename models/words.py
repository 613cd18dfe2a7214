"""How a caption is taken apart into words. No torch here."""


def words_of(caption: str) -> list[str]:
    """A caption's words, lower-case, without commas and full stops."""
    return caption.lower().replace(",", " ").replace(".", " ").split()
