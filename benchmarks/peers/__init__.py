"""The same work in other libraries, written as their manuals do. None of them is a dependency."""
