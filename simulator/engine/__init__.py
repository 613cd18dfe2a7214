"""Virtual time: devices, sessions and the clock that calls them back."""
