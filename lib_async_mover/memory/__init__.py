"""What moves, and where it lies: leaves, their host store in page-locked RAM, and the arena on the device."""
