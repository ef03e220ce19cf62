"""For notebooks: training with live curves, a photo from the reader, a search with it.

Nothing here uses a device in the notebook's own process. A TPU belongs to one process at a time,
so training and searching run in separate processes, one after another, and each finds it free.
"""
