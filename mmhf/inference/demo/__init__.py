"""A page to try a model on; needs the extra `demo`."""
