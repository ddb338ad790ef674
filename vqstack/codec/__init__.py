"""A lossless, progressive image codec over the model: every row of the ledger becomes bytes of a file.

``coder.py`` turns the factors of a distribution into bytes, ``pictures.py`` files into tiles of the model's size,
``blocks.py`` tiles into sections (labels and z_L, then each map below, pixels last), ``single.py`` and ``many.py``
sections into files, which ``container.py`` opens; ``archive.py`` is what the commands call.
"""
