"""The only room that touches a user's model: it runs the model, records it as a graph and runs circuits of it."""
