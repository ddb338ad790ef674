"""A page in the browser on which one looks at hierarchies of codes and edits them: ``vqstack explore RUN``.

The page holds no model logic: it shows what :class:`vqstack.Edited`, :func:`vqstack.use_of_codes`,
:func:`vqstack.blend` and the codec say. Files in reading order: ``opened`` (the model, its images, one computation at
a time), ``pictures`` (of maps, bits and codes), ``files`` (what can be downloaded), ``board`` (a map whose sites one
can point at, with a mouse or keys), ``desk`` (the image that a tab works on, undo and redo), then a file for each
part of the page: ``look``, ``edit``, ``create``, ``codebooks``, ``compressing``; and ``page``, which puts them
together.
"""
