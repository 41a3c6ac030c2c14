//! The program: everything is in the library.

fn main() -> std::process::ExitCode {
    p2pdb::cli::run()
}
