"""Every way to hold a thinking budget that a user could have instead, each called as its own host calls it."""
