"""Returns unused guest memory to the hosts through libvirt."""
