"""Get images back: python tools/decompress.py RUN FILES|FOLDER… --out FOLDER [--levels K] [--sample]."""

from vqstack.commands import run

if __name__ == "__main__":
    run("decompress")  # vqstack/commands/decompress.py
