"""Shared parts of the command lines: parser, exit codes, progress and tables."""
