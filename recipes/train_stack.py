"""Train a stack of levels and a prior: accelerate launch recipes/train_stack.py [--config YAML] [--out FOLDER]."""

from vqstack.commands import run

if __name__ == "__main__":
    run("train")  # vqstack/commands/train.py
