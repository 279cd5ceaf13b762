import sys

from mmhf.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["fetch", *sys.argv[1:]]))
