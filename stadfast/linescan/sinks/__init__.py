"""Where events go: files, pictures, other programs. ``..observer`` says what a sink is."""
