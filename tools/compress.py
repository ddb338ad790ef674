"""Compress images without loss: python tools/compress.py RUN IMAGES… --out FOLDER [--single] [--label …]."""

from vqstack.commands import run

if __name__ == "__main__":
    run("compress")  # vqstack/commands/compress.py
