"""Prices of work: seconds of forward passes and bytes of messages, from catalogue figures or measured profiles."""
