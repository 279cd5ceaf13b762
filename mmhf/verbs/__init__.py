"""What the verbs of the command line do, as functions for Python; `mmhf.train` and the others are these."""
