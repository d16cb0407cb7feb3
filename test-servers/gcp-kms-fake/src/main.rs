//! The fake as a program: prints its endpoint, and ends when its stdin does. With a folder as argument
//! it leaves the key of its service account there, in service-account.json.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

fn main() -> io::Result<()> {
    let fake = gcp_kms_fake::Fake::start();
    if let Some(folder) = std::env::args_os().nth(1) {
        let path = Path::new(&folder).join("service-account.json");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(fake.service_account().as_bytes())?;
    }
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", fake.endpoint())?;
    stdout.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
