"""Generate images: python tools/generate.py RUN --num N --out FOLDER [--label …] [--temperature …]."""

from vqstack.commands import run

if __name__ == "__main__":
    run("generate")  # vqstack/commands/generate.py
