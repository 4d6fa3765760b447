"""What is done to the webui's models, and how the webui gets them back. Knows nothing of the page."""
