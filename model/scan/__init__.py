"""Scans the history of a fleet: what each node may offer, and why."""
