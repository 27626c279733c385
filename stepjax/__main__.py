"""`python -m stepjax` is the same as the command `stepjax`."""

from stepjax.main import entry

if __name__ == "__main__":
    entry()
