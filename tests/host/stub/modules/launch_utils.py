"""There, and empty: its presence tells the webui from SD.Next."""
