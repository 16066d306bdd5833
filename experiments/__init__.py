"""One module, one result."""
