"""`python -m mmhf VERB …`, the same program as the console command `mmhf`."""

from mmhf.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
