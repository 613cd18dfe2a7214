"""What device, cloud, recorder and simulator say to each other: ops, messages, recordings, method settings."""
