"""Features of frozen parts as a column: computed once, kept on disk, read in place of images and texts."""
