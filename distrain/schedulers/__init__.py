"""Schedulers that a launch is handed to: rendering what they take is pure, handing it over is not."""
