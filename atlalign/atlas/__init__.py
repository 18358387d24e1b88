"""What an atlas is, and where a section lies in one."""
