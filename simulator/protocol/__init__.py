"""The vocabulary shared by device, cloud, recorder and simulator: ops, messages, recordings, method settings."""
