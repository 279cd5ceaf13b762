"""What each verb of the command line does, and what `mmhf.train`, `mmhf.predict` and the like call."""
