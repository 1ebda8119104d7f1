"""What ScroogeVM thinks: usage in, free resources out; nothing here touches a wire."""
