"""Replicas that batch per iteration, their queues and the rules of admission."""
