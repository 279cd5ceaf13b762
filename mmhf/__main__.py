"""`python -m mmhf VERB …`, the same program as the console command `mmhf`."""

import signal

import mmhf.cli


def main() -> int:
    """Run the verb that the command line names.

    Returns:
        `int`: As `mmhf.cli.main`.
    """
    code = mmhf.cli.main()
    # Nothing is left to tidy up: a second Ctrl-C while libraries are unloaded ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
