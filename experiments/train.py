"""`python experiments/train.py …` is `grpolab train …`."""

import sys

from grpolab.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
