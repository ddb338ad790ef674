"""Models as files that run elsewhere: ONNX for onnxruntime, or programs of torch.export.

Files in reading order: ``graphs`` (what a file computes), ``plan`` (which files a model has), ``trace`` (to a file and
back), ``run`` (what walks them with numpy alone; it is copied beside them), ``check`` (against torch), ``folder``.
"""
