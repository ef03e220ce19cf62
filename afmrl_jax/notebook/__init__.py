"""What notebooks need: training with live curves, a photo from the reader, a search with it.

Nothing here touches a device in the notebook's own process. A TPU belongs to one process at a
time, so training and searching run in processes of their own, one after the other, and each finds
it free.
"""
