//! Arguments -> command; exit codes.
fn main() {}
