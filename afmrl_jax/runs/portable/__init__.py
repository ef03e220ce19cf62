"""What an exported folder holds besides its weights; nothing here needs this package to run."""
