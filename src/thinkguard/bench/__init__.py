"""What the guard costs a user, on their model and their device: `thinkguard bench`."""
