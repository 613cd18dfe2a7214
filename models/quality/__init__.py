"""How good finished images are: what the cloud model thinks of them, and how they compare with real scenes and their captions."""
