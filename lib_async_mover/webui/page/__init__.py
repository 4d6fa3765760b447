"""What the user sees and sets: the accordion, its live readout, the settings, the routes behind them."""
