"""What people ask and order: the command line, the doctor, health."""
