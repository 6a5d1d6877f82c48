"""What a request may say to a server, read and checked, and what becomes of it over the server's default; needs no host."""
