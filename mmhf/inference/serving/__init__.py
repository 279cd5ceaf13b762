"""Trained models behind HTTP; needs the extra `serve`."""
