"""What is built on the package: studies of several runs, and reports of what they measured."""
