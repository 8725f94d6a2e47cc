//! Where maps come from: read a file, validate it, compare it with the running one, publish it.
