"""Folders of Hugging Face and PEFT, read and written without torch."""
