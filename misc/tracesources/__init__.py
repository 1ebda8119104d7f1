"""Where usage data comes from, a module per source."""
