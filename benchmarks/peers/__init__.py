"""What people use instead: the same work in other libraries, written as their manuals do. None of it is a dependency."""
