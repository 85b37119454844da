"""What a program will need and take on TPUs that are not there, by the compiler's own account."""
