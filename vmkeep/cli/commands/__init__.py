"""What can be typed: one function a command. They import the library only when they run."""
