"""What the guard costs and what it does, measured side by side with every alternative; `thinkguard bench` runs it."""
