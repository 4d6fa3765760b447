"""A stand-in for the webui's `modules`: as much of it as the adapter meets, written from what the host does."""
