"""Encode a data set to code maps: python tools/encode_dataset.py RUN --out FOLDER [--data.* …]."""

from vqstack.commands import run

if __name__ == "__main__":
    run("encode")  # vqstack/commands/encode.py
