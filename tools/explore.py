"""Look at codes and edit them in the browser: python tools/explore.py RUN; the same as ``vqstack explore``."""

from vqstack.commands import run

if __name__ == "__main__":
    run("explore")
