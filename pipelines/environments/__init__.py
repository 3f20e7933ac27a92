"""The environments that other projects live in, what fills them, and the workers that run there."""
