"""A scheduler that acts on a published status file, and the simulated workers on which it starts VMs."""
