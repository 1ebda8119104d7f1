"""Replays recorded traces through the strategies and scores the results."""
