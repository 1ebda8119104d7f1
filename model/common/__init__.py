"""Shared parts of the daemons: settings, errors, files, logs, life cycle, threads and the HTTP server."""
