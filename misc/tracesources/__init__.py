"""Sources of usage data, a module for each."""
