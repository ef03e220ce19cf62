"""Programs of real sizes, compiled for an accelerator that is elsewhere, and what is in them."""
