"""What work costs: seconds of forward passes, bytes of messages, by catalogue figures or measured profiles."""
