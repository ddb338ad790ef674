"""Evaluate a model on a split: python tools/evaluate.py RUN --out FOLDER [--split test] [--no-samples]."""

from vqstack.commands import run

if __name__ == "__main__":
    run("evaluate")  # vqstack/commands/evaluate.py
