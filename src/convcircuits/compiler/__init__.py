"""The compiler: it cuts a circuit out of a model, writes it as a small module, runs, saves and measures it."""
