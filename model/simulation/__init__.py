"""The closed loop: a scheduler fills what is published, and the VMs that it places change what comes next."""
