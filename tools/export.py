"""Write a model as ONNX or torch.export files: python tools/export.py RUN --out FOLDER [--format onnx|torch]."""

from vqstack.commands import run

if __name__ == "__main__":
    run("export")  # vqstack/commands/export.py
