"""Checkpoints of the hand-written programs that mmhf replaces, turned into releases."""
