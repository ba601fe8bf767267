"""`python -m grpolab`."""

from grpolab.cli import entry

if __name__ == "__main__":
    entry()
