"""What an exported folder holds beside its weights; nothing here needs this package to run."""
